// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// dropPackets has the kernel drop whatever comes in on a connection, acknowledgements too, or no longer. It does so by
// a filter on the socket, which needs no rights.
func dropPackets(t testing.TB, c net.Conn, yes bool) {
	t.Helper()
	raw, err := c.(*tls.Conn).NetConn().(*net.TCPConn).SyscallConn()
	testenv.NoError(t, err)
	var set error
	err = raw.Control(func(fd uintptr) {
		if yes {
			keep := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0} // bytes of each packet
			set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &keep})
		} else {
			set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		}
	})
	testenv.NoError(t, errors.Join(err, set))
}

// onlyConn is a server's connection, as the network gave it.
func (s *server) onlyConn(t *testing.T) net.Conn {
	t.Helper()
	s.Transport.connections.mu.Lock()
	defer s.Transport.connections.mu.Unlock()
	testenv.Require(t, len(s.conns) == 1, "%d connections", len(s.conns))
	for c := range s.conns {
		return c.Conn
	}
	return nil
}

// until waits for something that the kernel or another goroutine does.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for began := time.Now(); !is(); time.Sleep(time.Millisecond) { // between two looks at a condition
		testenv.Require(t, time.Since(began) <= 2*time.Minute, "not within two minutes: %s", what)
	}
}

// TestKernelBacksOff: all packets are lost on a connection over which a call is under way. Others, made on a new one,
// are answered while that goes on, and the first is when it ends.
func TestKernelBacksOff(t *testing.T) {
	for _, lost := range []string{"calls", "answers"} {
		t.Run(lost, func(t *testing.T) {
			g := newLoopback(t)
			entered, leave := make(chan struct{}), make(chan struct{})
			a := start(t, g, 0, "a.1", nil)
			b := start(t, g, 1, "b.1", func(o *Options) {
				o.Handle = func(ctx context.Context, from, method string, body []byte) ([]byte, error) {
					if method == "long" {
						close(entered) // twice would be a panic
						<-leave
					}
					return body, nil
				}
			})
			address := string(b.address)
			long := make(chan error, 1) // the test may have failed
			go func() {
				_, err := a.Call(t.Context(), address, "long", nil)
				long <- err
			}()
			<-entered
			old := a.onlyConn(t)
			loses := old
			if lost == "calls" {
				loses = b.onlyConn(t)
			}
			dropPackets(t, loses, true)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			testenv.Fails(t, testenv.Err(a.Call(ctx, address, "echo", nil)), "a call was answered")
			until(t, "TCP sends again twice", func() bool { return retransmits(old) >= failedTries })
			testenv.Check(t, testenv.Err(a.Call(t.Context(), address, "echo", nil)))
			if k := a.connections(); k < 2 { // on a busy machine the new one may have been late, and another one made
				t.Errorf("%d connections instead of two", k)
			}
			dropPackets(t, loses, false)
			close(leave)
			testenv.Check(t, <-long, "the call that was under way")
			until(t, "what was left is closed", func() bool { return a.connections() == 1 })
		})
	}
}

// TestUnresponsivePeerIsNoPacketLoss: for who does not answer, or does not even read, the kernel acknowledges what was
// sent. That is no loss.
func TestUnresponsivePeerIsNoPacketLoss(t *testing.T) {
	g := newLoopback(t)
	a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", serving)
	testenv.NoError(t, testenv.Err(a.Call(t.Context(), string(b.address), "echo", nil))) // so that there is a connection
	conn := a.onlyConn(t)
	began := time.Now()
	for time.Since(began) < 5*minTimeout {
		ctx, cancel := context.WithTimeout(t.Context(), minTimeout)
		testenv.Fails(t, testenv.Err(a.Call(ctx, string(b.address), "hang", nil)), "a call was answered")
		cancel()
	}
	testenv.Equal(t, a.onlyConn(t), conn, "another connection was made:")
	if k := retransmits(conn); k >= failedTries { // once it may be: a busy kernel is late with an acknowledgement
		t.Errorf("sent again %d times", k)
	}

	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	testenv.NoError(t, err)
	defer c.Close()
	testenv.NoError(t, c.SetDeadline(time.Now().Add(5*minTimeout)))
	for err == nil {
		_, err = c.Write(make([]byte, 1<<16))
	}
	testenv.ErrorIs(t, err, os.ErrDeadlineExceeded)
	if k := retransmits(c); k >= failedTries {
		t.Errorf("sent again %d times", k)
	}
	_ = c.Close()
	if k := retransmits(c); k != 0 {
		t.Errorf("closed, and sent again %d times", k)
	}
}

// unacknowledged returns how many segments that were sent on a connection wait for an acknowledgement.
func unacknowledged(t testing.TB, c net.Conn) (segments uint32) {
	t.Helper()
	raw := testenv.Must(c.(*tls.Conn).NetConn().(*net.TCPConn).SyscallConn())(t)
	var failed error
	testenv.NoError(t, raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if failed = err; err == nil {
			segments = info.Unacked
		}
	}))
	testenv.NoError(t, failed)
	return segments
}

// TestSilentPeerIsNoticed: all packets between two servers are lost while a call is under way that has been
// acknowledged. Both ends notice it, whatever becomes of their wall clocks.
func TestSilentPeerIsNoticed(t *testing.T) {
	t.Parallel()
	g := newLoopback(t)
	entered, ended := make(chan struct{}), make(chan time.Time, 1)
	a := start(t, g, 0, "a.1", nil)
	b := start(t, g, 1, "b.1", func(o *Options) {
		o.Handle = func(ctx context.Context, _, _ string, _ []byte) ([]byte, error) {
			close(entered)
			<-ctx.Done()
			ended <- time.Now()
			return nil, ctx.Err()
		}
	})
	failed := make(chan time.Time, 1)
	go func() {
		_, err := a.Call(t.Context(), string(b.address), "long", nil)
		testenv.WantError(t, err, "Unavailable")
		failed <- time.Now()
	}()
	<-entered
	mine, peers := a.onlyConn(t), b.onlyConn(t)
	until(t, "all is acknowledged", func() bool { return unacknowledged(t, mine) == 0 && unacknowledged(t, peers) == 0 })
	dropPackets(t, mine, true)
	dropPackets(t, peers, true)
	began := time.Now()
	caller, called := (<-failed).Sub(began), (<-ended).Sub(began)
	t.Logf("the caller noticed it after %v, the other end after %v", caller.Round(10*time.Millisecond), called.Round(10*time.Millisecond))
	const most = 20 * time.Second
	testenv.False(t, caller > most || called > most, "they noticed it after %v and %v", caller, called)
}
