// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// pair is a connection from a to b.
func pair(t *testing.T, n *Network) (a, b net.Conn) {
	t.Helper()
	l := n.Host("b").Listen()
	a = testenv.Must(n.Host("a").Dial(t.Context(), "b"))(t)
	b = testenv.Must(l.Accept())(t)
	testenv.NoError(t, l.Close())
	return a, b
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("wrote %d of %q: %v", n, s, err)
	}
}

func want(t *testing.T, c net.Conn, s string) {
	t.Helper()
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != s {
		t.Fatalf("read %q, %v instead of %q", b, err, s)
	}
}

// silent checks that nothing comes for a minute.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	testenv.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	start := time.Now()
	n, err := c.Read(make([]byte, 1))
	testenv.Require(t, n == 0 && errors.Is(err, os.ErrDeadlineExceeded), "read %d bytes, %v instead of running out of time", n, err)
	if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		t.Fatalf("%v is no timeout", err)
	}
	if took := time.Since(start); took != time.Minute {
		t.Fatalf("ran out of time after %v", took)
	}
	testenv.NoError(t, c.SetReadDeadline(time.Time{}))
}

func TestWriteIntoFullBufferBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b := pair(t, n)
		n.Cut("a", "b")
		testenv.NoError(t, a.SetWriteDeadline(time.Now().Add(time.Second)))
		wrote, err := a.Write(make([]byte, bufferBytes+1))
		testenv.Require(t, wrote == bufferBytes && errors.Is(err, os.ErrDeadlineExceeded), "wrote %d bytes, %v", wrote, err)
		n.Heal("a", "b")
		testenv.NoError(t, a.SetWriteDeadline(time.Time{}))
		written := make(chan struct{})
		go func() {
			defer close(written)
			_, _ = a.Write([]byte("x"))
		}()
		synctest.Wait()
		select {
		case <-written:
			t.Fatal("wrote into a full buffer")
		default:
		}
		testenv.Must(io.ReadFull(b, make([]byte, bufferBytes)))(t)
		<-written
		want(t, b, "x")
	})
}

func TestCutAndHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b := pair(t, n)
		send(t, a, "before, ")
		n.Cut("a", "b")
		send(t, a, "amid, ")
		send(t, b, "back") // the other direction is whole
		want(t, a, "back")
		want(t, b, "before, ") // it had arrived
		silent(t, b)
		n.Delay("a", "b", time.Second, 0)
		start := time.Now()
		n.Heal("a", "b")
		send(t, a, "after")
		want(t, b, "amid, after")
		if took := time.Since(start); took != time.Second {
			t.Fatalf("came after %v", took)
		}
		// What is under way when the link is cut does not arrive either.
		send(t, a, "under way")
		n.Cut("a", "b")
		silent(t, b)
		testenv.NoError(t, a.Close())
		silent(t, b) // nor does the end
		n.HealAll()
		want(t, b, "under way")
		if _, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Fatal(err)
		}
	})
}

func TestRetransmissionsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		n.Backoff(true)
		a, b := pair(t, n)
		n.Cut("a", "b")
		start := time.Now()
		send(t, a, "lost")
		time.Sleep(1500 * time.Millisecond) // fake time: the link is cut meanwhile
		send(t, a, ", too")
		n.Heal("a", "b")
		send(t, a, ", behind it")
		l := n.Host("b").Listen()
		defer l.Close()
		testenv.Must(n.Host("a").Dial(t.Context(), "b"))(t)
		if took := time.Since(start); took != 1500*time.Millisecond {
			t.Fatalf("a new connection after %v", took)
		}
		want(t, b, "lost, too, behind it")
		if took := time.Since(start); took != 3*time.Second {
			t.Fatalf("sent again after %v", took) // 0.2, 0.6, 1.4, 3
		}
	})
}

func TestDelayAndJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		n.Delay("a", "b", 100*time.Millisecond, 50*time.Millisecond)
		l := n.Host("b").Listen()
		defer l.Close()
		start := time.Now()
		var ends []net.Conn
		var dials []net.Conn
		for range 20 {
			a := testenv.Must(n.Host("a").Dial(t.Context(), "b"))(t)
			b := testenv.Must(l.Accept())(t)
			dials, ends = append(dials, a), append(ends, b)
		}
		if took := time.Since(start); took < 2*time.Second || took > 3*time.Second {
			t.Fatalf("20 dials took %v", took)
		}
		order := make(chan int, len(ends))
		start = time.Now()
		for i, a := range dials {
			send(t, a, "12")
			send(t, a, "34")
			go func() {
				want(t, ends[i], "1234")
				order <- i
			}()
		}
		overtaken, last := false, -1
		for range ends {
			i := <-order
			overtaken = overtaken || i < last
			last = i
		}
		if took := time.Since(start); took < 100*time.Millisecond || took > 150*time.Millisecond {
			t.Fatalf("took %v", took)
		}
		testenv.Require(t, overtaken, "jitter reordered nothing between connections")
	})
}

// TestNarrowLinkTakesItsTime: what is sent over a narrow link takes its time on each connection, after a cut too.
func TestNarrowLinkTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		n.Delay("a", "b", time.Second, 0)
		n.Rate("a", "b", 10)
		a, b := pair(t, n)
		takes := func(d time.Duration, s string) {
			t.Helper()
			start := time.Now()
			want(t, b, s)
			testenv.Equal(t, time.Since(start), d, "%q took", s)
		}
		send(t, a, "0123456789")
		send(t, a, "01234")
		takes(2*time.Second, "0123456789")
		takes(500*time.Millisecond, "01234")
		n.Cut("a", "b")
		send(t, a, "0123456789")
		send(t, a, "01234")
		time.Sleep(time.Minute) // fake time
		n.Heal("a", "b")
		takes(2*time.Second, "0123456789")
		takes(500*time.Millisecond, "01234")
		n.Rate("a", "b", 0)
		send(t, a, "0123456789")
		takes(time.Second, "0123456789")
	})
}

func TestDialBlocksThenIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a := n.Host("a")
		if _, err := a.Dial(t.Context(), "b"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("%v without a listener", err)
		}
		l := n.Host("b").Listen()
		for _, cut := range []route{{"a", "b"}, {"b", "a"}} {
			n.Cut(cut.from, cut.to)
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			start := time.Now()
			if _, err := a.Dial(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Hour {
				t.Fatalf("%v after %v", err, time.Since(start))
			}
			cancel()
			dialed := make(chan error)
			go func() {
				_, err := a.Dial(t.Context(), "b")
				dialed <- err
			}()
			synctest.Wait()
			n.Heal(cut.from, cut.to)
			testenv.NoError(t, <-dialed)
			testenv.Must(l.Accept())(t)
		}
		second := n.Host("b").Listen()
		if _, err := second.Accept(); !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
		accepted := make(chan error)
		go func() {
			_, err := l.Accept()
			accepted <- err
		}()
		synctest.Wait()
		l.Close()
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	})
}

func TestPartitionCutsAndHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		names := []string{"a", "b", "c", "d"}
		for _, h := range names {
			l := n.Host(h).Listen()
			defer l.Close()
		}
		check := func(want ...string) {
			t.Helper()
			reachable := map[string]bool{}
			for _, w := range want {
				reachable[w] = true
			}
			for _, from := range names {
				for _, to := range names {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					_, err := n.Host(from).Dial(ctx, to)
					cancel()
					testenv.False(t, (err == nil) != (from == to || reachable[from+to]), "%s to %s: %v", from, to, err)
				}
			}
		}
		all := []string{"ab", "ac", "ad", "ba", "bc", "bd", "ca", "cb", "cd", "da", "db", "dc"}
		n.Partition([]string{"a"}, []string{"b", "c"}) // d is a bridge
		check("ad", "bc", "bd", "cb", "cd", "da", "db", "dc")
		n.Partition([]string{"a", "b"}, []string{"c"})
		check("ab", "ba", "ad", "bd", "cd", "da", "db", "dc")
		n.HealAll()
		check(all...)
	})
}

func TestResetEndsBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b := pair(t, n)
		first := a
		n.Delay("b", "a", time.Second, 0)
		l := n.Host("b").Listen()
		start := time.Now()
		n.Reset("b")
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) || time.Since(start) != time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		// The host comes back.
		a, b = pair(t, n)
		send(t, a, "hello again")
		want(t, b, "hello again")

		// Behind a cut, the news waits.
		n.Cut("b", "a")
		n.Reset("b")
		silent(t, a)
		n.Heal("b", "a")
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		_, _ = first.Close(), a.Close()
		for _, h := range []string{"a", "b"} {
			testenv.True(t, len(n.Host(h).conns) == 0, "%s still knows %d connections", h, len(n.Host(h).conns))
		}
	})
}
