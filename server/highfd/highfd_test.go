// SPDX-License-Identifier: Apache-2.0

package highfd

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func numberOf(t *testing.T, c any) int {
	t.Helper()
	return testenv.Must(descriptorOf(c))(t)
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries := testenv.Must(os.ReadDir("/proc/self/fd"))(t)
	return len(entries)
}

// pair connects over a listener that was moved, and moves the calling end.
func pair(t *testing.T) (l net.Listener, calls, called net.Conn) {
	t.Helper()
	l = Listener(testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t))
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	testenv.NoError(t, err)
	calls = Conn(c)
	t.Cleanup(func() { calls.Close() })
	called, err = l.Accept()
	testenv.NoError(t, err)
	t.Cleanup(func() { called.Close() })
	return l, calls, called
}

// TestMovedConnectionsWorkAndClose: listener and connection work as before, under high numbers, and closing them closes
// them.
func TestMovedConnectionsWorkAndClose(t *testing.T) {
	l, calls, called := pair(t)
	before := openFiles(t)
	for what, c := range map[string]any{"listener": l, "connection": calls} {
		if n := numberOf(t, c); n < firstDescriptor {
			t.Errorf("the %s has number %d", what, n)
		}
	}
	if n := numberOf(t, called); n >= firstDescriptor {
		t.Errorf("what was not moved has number %d", n)
	}
	for option, level := range map[int]int{unix.TCP_NODELAY: unix.IPPROTO_TCP, unix.SO_KEEPALIVE: unix.SOL_SOCKET} {
		if on, err := unix.GetsockoptInt(numberOf(t, calls), level, option); err != nil || on == 0 {
			t.Errorf("option %d of level %d is %d, %v", option, level, on, err)
		}
	}
	for _, c := range []any{l, calls} {
		if flags, err := unix.FcntlInt(uintptr(numberOf(t, c)), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("children inherit it: %d, %v", flags, err)
		}
	}
	testenv.Must(calls.Write([]byte("x")))(t)
	testenv.Must(io.ReadFull(called, make([]byte, 1)))(t)
	address := l.Addr().String()
	calls.Close()
	if n, err := called.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the other end was closed: %d, %v", n, err)
	}
	l.Close()
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("a process listens although the listener was closed")
	}
	testenv.Equal(t, openFiles(t), before-2, "files are open:")
}

// TestNoHighNumbersLeaveTheDescriptor: without high numbers, or without a descriptor, everything stays as it is.
func TestNoHighNumbersLeaveTheDescriptor(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	testenv.Equal(t, Conn(a), a, "a connection without a descriptor was replaced:")
	allow(t, 2*firstDescriptor-1)
	l, calls, called := pair(t)
	before := openFiles(t)
	testenv.False(t, Conn(calls) != calls || Listener(l) != l, "something was replaced")
	if n := openFiles(t); n != before || numberOf(t, calls) >= firstDescriptor {
		t.Errorf("%d files are open, before %d", n, before)
	}
	testenv.Check(t, testenv.Err(called.Write([]byte("x"))))
}

// TestSocketFileIsRemovedAtClose: a listener's socket file is there until it is closed, and then it is not.
func TestSocketFileIsRemovedAtClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l := testenv.Must(net.Listen("unix", path))(t)
	l = Listener(l)
	testenv.Check(t, testenv.Err(os.Stat(path)))
	l.Close()
	testenv.Fails(t, testenv.Err(os.Stat(path)), "the file is left")
}

// TestNothingLeaksWhenLowNumbersAreTaken: where all low numbers are taken, nothing is moved, and nothing is left open.
func TestNothingLeaksWhenLowNumbersAreTaken(t *testing.T) {
	var last int
	for last < firstDescriptor {
		last = take(t, 0)
	}
	l, calls, _ := pair(t)
	before := openFiles(t)
	for range 10 {
		testenv.False(t, Conn(calls) != calls || Listener(l) != l, "what had a high number already was replaced")
	}
	if n := openFiles(t); n != before {
		t.Errorf("%d files are open, before %d", n, before)
	}
	release, err := reserveLowFDs()
	testenv.Check(t, err)
	release()
	if n := openFiles(t); n != before {
		t.Errorf("after holding what is free %d files are open, before %d", n, before)
	}
}

// TestDeadlinesWorkWithFewDescriptorsLeft: however many numbers are left, what comes back has its deadlines, and ends
// when it is closed; and no descriptor is lost.
func TestDeadlinesWorkWithFewDescriptorsLeft(t *testing.T) {
	for left := range 6 {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
			defer func() { l.Close() }()
			c := testenv.Must(net.Dial("tcp", l.Addr().String()))(t)
			defer func() { c.Close() }()
			before := openFiles(t)
			t.Run("full", func(t *testing.T) { // what it takes it gives back
				allow(t, 2*firstDescriptor)
				for fd := firstDescriptor; fd < 2*firstDescriptor-left; fd++ {
					take(t, fd)
				}
				l, c = Listener(l), Conn(c)
			})
			t.Logf("connection %d, listener %d", numberOf(t, c), numberOf(t, l))
			if n := openFiles(t); n != before {
				t.Errorf("%d files are open, before %d", n, before)
			}
			heeds(t, "read", c.SetReadDeadline, func() error { _, err := c.Read(make([]byte, 1)); return err })
			heeds(t, "accept", l.(*net.TCPListener).SetDeadline, func() error { return accepts(l) })
		})
	}
}

// heeds wants a deadline to end a wait.
func heeds(t *testing.T, what string, deadline func(time.Time) error, wait func() error) {
	t.Helper()
	testenv.NoError(t, deadline(time.Now().Add(time.Millisecond)))
	done := make(chan error, 1)
	go func() { done <- wait() }()
	select {
	case err := <-done:
		testenv.ErrorIs(t, err, os.ErrDeadlineExceeded, "%s", what)
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s heeds no deadline", what)
	}
}

// accepts takes connections until there is an error.
func accepts(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		c.Close()
	}
}

// TestConcurrentOpensDoNotLowerTheNumber: others open and close files meanwhile, and the numbers are high all the same.
func TestConcurrentOpensDoNotLowerTheNumber(t *testing.T) {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	stop := make(chan struct{})
	var others sync.WaitGroup
	defer others.Wait()
	defer close(stop)
	for range 2 {
		others.Go(func() {
			for {
				var fds []int
				for range 20 {
					if fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
						fds = append(fds, fd)
					}
				}
				for _, fd := range fds {
					_ = unix.Close(fd) // nothing else has it
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 300 {
		c, err := net.Dial("tcp", l.Addr().String())
		testenv.NoError(t, err)
		moved := Conn(c)
		if n := numberOf(t, moved); n < firstDescriptor {
			t.Errorf("a connection has number %d", n)
		}
		moved.Close()
		testenv.NoError(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(2*time.Minute)))
		c, err = l.Accept()
		testenv.NoError(t, err)
		c.Close()
	}
}

// allow sets how many files may be open, until the test ends.
func allow(t *testing.T, files uint64) {
	t.Helper()
	var was syscall.Rlimit
	testenv.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was))
	testenv.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: files, Max: was.Max}))
	t.Cleanup(func() { testenv.Check(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was)) })
}

// take takes the lowest number that is free and not below another one, until the test ends.
func take(t *testing.T, least int) int {
	t.Helper()
	fd := testenv.Must(unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, least))(t)
	t.Cleanup(func() { _ = unix.Close(fd) }) // nothing else has it
	return fd
}
