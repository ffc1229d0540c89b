// SPDX-License-Identifier: Apache-2.0

package closefirst

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"
)

func number(t *testing.T, c any) (n int) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n = int(fd) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// pair connects over a listener that was moved, and moves the calling end.
func pair(t *testing.T) (l net.Listener, calls, called net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l = Listener(l)
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	calls = Conn(c)
	t.Cleanup(func() { calls.Close() })
	if called, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { called.Close() })
	return l, calls, called
}

// TestMoved: listener and connection work as before, under high numbers, and closing them closes them.
func TestMoved(t *testing.T) {
	l, calls, called := pair(t)
	before := openFiles(t)
	for what, c := range map[string]any{"listener": l, "connection": calls} {
		if n := number(t, c); n < first {
			t.Errorf("the %s has number %d", what, n)
		}
	}
	if n := number(t, called); n >= first {
		t.Errorf("what was not moved has number %d", n)
	}
	if _, err := calls.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(called, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	calls.Close()
	if n, err := called.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the other end was closed: %d, %v", n, err)
	}
	l.Close()
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("somebody listens although the listener was closed")
	}
	if n := openFiles(t); n != before-2 {
		t.Errorf("%d files are open, want %d", n, before-2)
	}
}

// TestNotMoved: without high numbers, or without a descriptor, everything stays as it is.
func TestNotMoved(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Conn(a) != a {
		t.Error("a connection without a descriptor was replaced")
	}
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: first, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}()
	l, calls, called := pair(t)
	before := openFiles(t)
	if Conn(calls) != calls || Listener(l) != l {
		t.Error("something was replaced")
	}
	if n := openFiles(t); n != before || number(t, calls) >= first {
		t.Errorf("%d files are open, before %d", n, before)
	}
	if _, err := called.Write([]byte("x")); err != nil {
		t.Error(err)
	}
}

func BenchmarkConn(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c = Conn(c)
	}
	c.Close()
}
