// SPDX-License-Identifier: Apache-2.0

package nodetunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var kubelet = netip.MustParseAddrPort("10.0.0.7:10250")

// connect joins a node's end and a server's until the end of the test.
func connect(t *testing.T, n Node) *Session {
	t.Helper()
	a, b := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = n.Serve(ctx, a) })
	s := testenv.Must(NewSession(b))(t)
	running.Go(func() { _ = s.Wait() })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return s
}

// echo is a node whose kubelet repeats what it hears, and says "bye" when the other end has said all.
func echo() Node {
	return Node{
		Allowed: func(to netip.AddrPort) bool { return to == kubelet },
		Dial: func(context.Context, string, string) (net.Conn, error) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			go func() {
				defer l.Close()
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				_, _ = io.Copy(c, c)
				_, _ = io.WriteString(c, "bye")
			}()
			return net.Dial("tcp", l.Addr().String())
		},
	}
}

func TestStreamsCarryBothWays(t *testing.T) {
	defer testenv.NoGoroutineLeft(t, goleak.IgnoreCurrent())
	t.Run("streams", func(t *testing.T) {
		s := connect(t, echo())
		big := bytes.Repeat([]byte("0123456789"), 100_000) // more than a window
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				c, err := s.Dial(t.Context(), kubelet)
				if err != nil {
					t.Error(err)
					return
				}
				go func() {
					_, _ = c.Write(big)
					_ = c.Close() // this way; the other one stays open
				}()
				got, err := io.ReadAll(c)
				testenv.True(t, err == nil && bytes.Equal(got, append(big[:len(big):len(big)], "bye"...)),
					"%d bytes came back, %v", len(got), err)
			})
		}
		all.Wait()
		testenv.Equal(t, s.Streams(), 0, "streams are left:")
	})
}

// A node opens streams to what is its own and to nothing else.
func TestNodeOpensStreamsToItselfOnly(t *testing.T) {
	s := connect(t, echo())
	for _, to := range []string{"10.0.0.8:10250", "10.0.0.7:22", "127.0.0.1:10250", "[::ffff:10.0.0.8]:10250"} {
		c, err := s.Dial(t.Context(), netip.MustParseAddrPort(to))
		testenv.ErrorIs(t, err, ErrRefused, "%s: %v", to, c)
	}
	// Other names of what is the node's are the same.
	c := testenv.Must(s.Dial(t.Context(), netip.MustParseAddrPort("[::ffff:10.0.0.7]:10250")))(t)
	c.Close()
}

func TestFailedDialIsReported(t *testing.T) {
	n := echo()
	n.Dial = func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New(strings.Repeat("long ", 1000))
	}
	s := connect(t, n)
	if _, err := s.Dial(t.Context(), kubelet); !errors.Is(err, ErrRefused) || len(err.Error()) > 2*maxReason {
		t.Errorf("%d bytes: %v", len(err.Error()), err)
	}
	// A dialler who gives up does not wait for the node.
	n.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s = connect(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	testenv.ErrorIs(t, testenv.Err(s.Dial(ctx, kubelet)), context.Canceled)
}

// The server hears from a node that has nothing to say, and a node leaves a server that is silent. In real time: yamux
// keeps timers for all connections of a process, which testing/synctest does not bear.
func TestUnresponsiveServerIsLeft(t *testing.T) {
	n := echo()
	n.pingEvery = 100 * time.Millisecond // fewer than the limit
	s := connect(t, n)
	for range 5 {
		last := s.LastContact()
		testenv.Until(t, 2*time.Minute, "the node is heard again", func() bool { return s.LastContact().After(last) })
	}

	a, b := net.Pipe()
	defer b.Close()
	go func() { _, _ = io.Copy(io.Discard, b) }()
	n.writeTimeout = 50 * time.Millisecond
	began := time.Now()
	if err := n.Serve(t.Context(), a); err == nil || time.Since(began) < n.writeTimeout {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

// slowAnswers is a connection that says when something was written, and on which nothing comes in while slow is locked.
type slowAnswers struct {
	net.Conn
	wrote chan struct{}
	slow  sync.Mutex
}

func (c *slowAnswers) Write(b []byte) (int, error) {
	c.wrote <- struct{}{}
	return c.Conn.Write(b)
}

func (c *slowAnswers) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.slow.Lock()
	defer c.slow.Unlock()
	return n, err
}

// A node that is answered after more than a ping's period speaks again at once, not at the moment after the next: the
// server, to which it may be silent for less than one and a half periods, would take it for dead. In real time, as
// TestUnresponsiveServerIsLeft.
func TestDelayedPingAnswerKeepsConnection(t *testing.T) {
	n := echo()
	const due = 10 * time.Millisecond
	var answered atomic.Bool
	n.Until = func(time.Duration) time.Duration { // who looks for the next moment when there is an answer waits for long
		if answered.Load() {
			return time.Hour
		}
		return due
	}
	a, b := net.Pipe()
	s := testenv.Must(NewSession(b))(t)
	node := &slowAnswers{Conn: a, wrote: make(chan struct{}, 100)} // more than are written meanwhile
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	running.Go(func() { _ = s.Wait() })
	node.slow.Lock()
	running.Go(func() { _ = n.Serve(ctx, node) })
	<-node.wrote
	time.Sleep(2 * due) // the moment at which a ping was due passes before there is an answer
	testenv.True(t, len(node.wrote) == 0, "there are pings beside the one that is not answered yet")
	answered.Store(true)
	node.slow.Unlock()
	select {
	case <-node.wrote:
	case <-time.After(2 * time.Minute):
		t.Error("the next ping does not come with the answer")
	}
}

// A node that opens streams itself is disconnected.
func TestStreamOpenedByNodeClosesConnection(t *testing.T) {
	a, b := net.Pipe()
	s := testenv.Must(NewSession(b))(t)
	go func() {
		_, _ = a.Write([]byte{0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0}) // a window update with SYN, of stream 2
		_, _ = io.Copy(io.Discard, a)
	}()
	testenv.ErrorIs(t, s.Wait(), errNodeOpened)
	a.Close()
}

// A connection that ends takes its streams with it.
func TestStreamsEndWithTheConnection(t *testing.T) {
	s := connect(t, echo())
	c := testenv.Must(s.Dial(t.Context(), kubelet))(t)
	testenv.Check(t, s.Close())
	testenv.Fails(t, testenv.Err(c.Read(make([]byte, 1))), "the stream outlives its connection")
	if _, err := s.Dial(t.Context(), kubelet); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("a stream over a connection that has ended: %v", err)
	}
}

// TestStreamsAreReserved: a node's streams that a user may have are fewer than it has, so that the cluster's own
// purposes have some; a stream beyond all is refused with the reason, and one is served again when others have ended.
func TestStreamsAreReserved(t *testing.T) {
	n := echo()
	n.Dial = func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, b); b.Close() }()
		return a, nil
	}
	s := connect(t, n)
	var open []net.Conn
	for range maxStreams - reservedStreams {
		open = append(open, testenv.Must(s.DialForUser(t.Context(), kubelet))(t))
	}
	testenv.ErrorIs(t, testenv.Err(s.DialForUser(t.Context(), kubelet)), ErrTooMany, "a user's stream beyond the share")
	for range reservedStreams {
		open = append(open, testenv.Must(s.Dial(t.Context(), kubelet))(t))
	}
	err := testenv.Err(s.Dial(t.Context(), kubelet))
	testenv.ErrorIs(t, err, ErrTooMany, "a stream beyond all")
	testenv.Contains(t, err.Error(), "too many connections to this node", "the reason")
	for _, c := range open {
		testenv.Check(t, c.Close())
	}
	testenv.Until(t, 2*time.Minute, "the streams have ended", func() bool { return s.Streams() == 0 })
	testenv.Must(s.DialForUser(t.Context(), kubelet))(t)
}

// FuzzTarget: whatever comes in place of an address, no more is read of it than one may be long, and what is taken is
// one.
func FuzzTarget(f *testing.F) {
	f.Add([]byte("\x00\x0e10.0.0.7:10250"))
	f.Add([]byte("\x00\x07[::1]:1"))
	f.Add([]byte("\x00\x0b[fe80::1%a]:1"))
	f.Add([]byte("\xff\xff"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		r := bytes.NewReader(sent)
		to, err := readTarget(r)
		if took := len(sent) - r.Len(); took > 2+maxTarget {
			t.Fatalf("%d bytes were read", took)
		}
		if err != nil {
			return
		}
		testenv.Require(t, to.IsValid() && to.Port() != 0 && !to.Addr().Is4In6() && to.Addr().Zone() == "", "%v was taken", to)
		var again bytes.Buffer
		testenv.NoError(t, writeMessage(&again, to.String()))
		if back, err := readTarget(&again); err != nil || back != to {
			t.Fatalf("%v becomes %v, %v", to, back, err)
		}
	})
}
