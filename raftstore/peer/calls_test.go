// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// handle is a server's answers in these tests.
func handle(ctx context.Context, from, method string, body []byte) ([]byte, error) {
	switch method {
	case "who":
		return []byte(from), nil
	case "echo":
		return body, nil
	case "hang":
		<-ctx.Done()
		return nil, ctx.Err()
	case "status":
		return nil, status.Error(codes.ResourceExhausted, "mvcc: database space exceeded")
	case "wrapped":
		return nil, fmt.Errorf("propose: %w", status.Error(codes.NotFound, "lease"))
	}
	return nil, errors.New("no such method: " + method)
}

func serving(o *Options) { o.Handle = handle }

func TestCallsCarryBodiesAndErrors(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", serving)
		none := start(t, g, 2, "", func(o *Options) { o.Cluster, o.Listener = "", nil })
		at := string(b.address)
		for from, want := range map[*server]string{a: "a.1", none: ""} {
			testenv.Equal(t, string(testenv.Must(from.Call(t.Context(), at, "who", nil))(t)), want, "")
		}
		for _, size := range []int{0, 1, 100_000, MaxCall} {
			body := bytes.Repeat([]byte("x"), size)
			if got, err := a.Call(t.Context(), at, "echo", body); err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes came back of %d, %v", len(got), size, err)
			}
		}
		for method, want := range map[string]string{
			"status":                       "rpc error: code = ResourceExhausted desc = mvcc: database space exceeded",
			"wrapped":                      "rpc error: code = NotFound desc = propose: rpc error: code = NotFound desc = lease",
			"what":                         "rpc error: code = Unknown desc = no such method: what",
			strings.Repeat("n", maxName+1): "rpc error: code = Internal desc = grpc: error while marshaling: peer: the method's name has 256 bytes",
		} {
			if _, err := a.Call(t.Context(), at, method, nil); err == nil || err.Error() != want {
				t.Errorf("%v", err)
			}
		}
		if _, err := a.Call(t.Context(), at, "echo", make([]byte, MaxCall+callOverhead)); status.Code(err) != codes.ResourceExhausted {
			t.Error(err)
		}
		if _, err := b.Call(t.Context(), string(a.address), "echo", nil); status.Code(err) != codes.Unimplemented {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := a.Call(ctx, at, "hang", nil); status.Code(err) != codes.DeadlineExceeded {
			t.Error(err)
		}
		testenv.False(t, a.Contact("b.1").IsZero(), "no contact by calls")
	})
}

func TestCallsToWrongServerAreRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a := start(t, g, 0, "a.1", serving)
		other := start(t, g, 1, "d.1", func(o *Options) { o.Cluster = "c2" })
		for range 2 { // the second fails by what the first found out
			_, err := other.Call(t.Context(), string(a.address), "echo", nil)
			refused, ok := errors.AsType[*RefusedError](err)
			testenv.True(t, ok && refused.Reason == "server d.1 belongs to cluster c2, this is cluster c1" && status.Code(err) == codes.Unavailable,
				"%+v", err)
		}
	})
}

// TestCallsFailOver has the server die under calls, and come back.
func TestCallsFailOver(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", serving)
		at := string(b.address)
		for range 3 {
			testenv.Must(a.Call(t.Context(), at, "echo", nil))(t)
			blocked := make(chan error)
			go func() {
				_, err := a.Call(t.Context(), at, "hang", nil)
				blocked <- err
			}()
			testenv.NoError(t, b.Close())
			if err := <-blocked; status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
				t.Fatal(err)
			}
			if _, err := a.Call(t.Context(), at, "echo", nil); status.Code(err) != codes.Unavailable {
				t.Fatal(err)
			}
			b = start(t, g, 1, "b.1", serving)
			back := time.Now()
			for {
				_, err := a.Call(t.Context(), at, "echo", nil)
				if err == nil {
					break
				}
				testenv.Require(t, time.Since(back) <= g.patience(), "%v", err)
				time.Sleep(time.Millisecond) // between two looks at a condition
			}
			t.Logf("answered %v after the restart", time.Since(back))
		}
	})
}

// TestVanishedServersCallsEnd has a server vanish in silence under a call.
func TestVanishedServersCallsEnd(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", serving)
		at := string(b.address)
		testenv.Must(a.Call(t.Context(), at, "echo", nil))(t)
		m.Partition([]string{"a"}, []string{"b"})
		failed := make(chan error)
		call := func() {
			_, err := a.Call(t.Context(), at, "echo", nil)
			failed <- err
		}
		go call()
		synctest.Wait()
		began := time.Now()
		a.CloseCalls(at)
		if err := <-failed; status.Code(err) != codes.Unavailable || time.Since(began) != 0 {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		// Without a notice, gRPC notices by itself.
		m.HealAll()
		testenv.Must(a.Call(t.Context(), at, "echo", nil))(t)
		m.Partition([]string{"a"}, []string{"b"})
		go call()
		began = time.Now()
		if err := <-failed; status.Code(err) != codes.Unavailable || time.Since(began) > 15*time.Second {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		// An answer that cannot come within the context's time.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began = time.Now()
		_, err := a.Call(ctx, at, "echo", nil)
		if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Unavailable || time.Since(began) > 100*time.Millisecond {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		m.HealAll()
	})
}

// TestIdleCallConnectionIsClosed sees the connection go when it is not used.
func TestIdleCallConnectionIsClosed(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", serving)
		testenv.Must(a.Call(t.Context(), string(b.address), "echo", nil))(t)
		count := func() int {
			a.Transport.connections.mu.Lock()
			defer a.Transport.connections.mu.Unlock()
			return len(a.conns)
		}
		if n := count(); n != 1 {
			t.Fatalf("%d connections", n)
		}
		time.Sleep(3 * callIdle) // fake time: longer than an idle connection is kept
		synctest.Wait()
		if n := count(); n != 0 {
			t.Fatalf("%d connections", n)
		}
		testenv.Must(a.Call(t.Context(), string(b.address), "echo", nil))(t)
	})
}
