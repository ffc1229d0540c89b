// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// connections is how many a server has.
func (s *server) connections() int {
	s.Transport.connections.mu.Lock()
	defer s.Transport.connections.mu.Unlock()
	return len(s.conns)
}

// TestLossWithoutSuspicion: packets are lost in silence, and no call is given up that shows it: none waited for long,
// or there was something that came in after it had begun. The next call, when they are lost no more, does not wait for
// TCP to try again.
func TestLossWithoutSuspicion(t *testing.T) {
	giveUp := func(t *testing.T, a *server, address, method string, after time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		defer cancel()
		testenv.Fails(t, testenv.Err(a.Call(ctx, address, method, nil)), "a call was answered")
	}
	for name, during := range map[string]func(t *testing.T, a *server, address string, lose func()){
		"a short call": func(t *testing.T, a *server, address string, lose func()) {
			lose()
			giveUp(t, a, address, "echo", 100*time.Millisecond)
		},
		"a call that began before another one was answered": func(t *testing.T, a *server, address string, lose func()) {
			time.AfterFunc(300*time.Millisecond, func() {
				testenv.Check(t, testenv.Err(a.Call(t.Context(), address, "echo", nil)))
				lose()
			})
			giveUp(t, a, address, "hang", time.Second)
		},
	} {
		for _, ways := range [][]string{{"a", "b"}, {"b", "a"}, {"a", "b", "a"}} {
			for _, loss := range []time.Duration{2 * time.Second, 3 * time.Second, 8 * time.Second, 11 * time.Second} {
				inMemory(t, func(t *testing.T, m memory) {
					m.Backoff(true)
					a, b := start(t, m, 0, "a.1", serving), start(t, m, 1, "b.1", serving)
					address := string(b.address)
					testenv.Must(a.Call(t.Context(), address, "echo", nil))(t)
					time.Sleep(time.Second)         // fake time: the connection falls idle
					lost := make(chan time.Time, 1) // once
					during(t, a, address, func() {
						for i := range ways[1:] {
							m.Cut(ways[i], ways[i+1])
						}
						lost <- time.Now()
					})
					time.Sleep(time.Until((<-lost).Add(loss))) // fake time
					m.HealAll()
					began := time.Now()
					_, err := a.Call(t.Context(), address, "echo", nil)
					if took := time.Since(began); err != nil || took > 10*time.Millisecond {
						t.Errorf("%s, %v of loss from %v: after it a call took %v: %v", name, loss, ways, took, err)
					}
				})
			}
		}
	}
}

// TestLossAmidShortCalls is TestLossAmidCalls without another leader that is heard of: each call just ends while
// packets are lost, or did before. The loss is as long as any.
func TestLossAmidShortCalls(t *testing.T) {
	for seed := range uint64(100) {
		inMemory(t, func(t *testing.T, m memory) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			random := func(most time.Duration) time.Duration { return time.Duration(rnd.Int64N(int64(most))) }
			m.Backoff(true)
			for _, way := range [][2]string{{"a", "b"}, {"b", "a"}} {
				m.Delay(way[0], way[1], time.Millisecond, time.Millisecond)
			}
			a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", takingItsTime)
			address := string(b.address)
			lost := time.Now().Add(time.Second)
			var calls sync.WaitGroup
			for range 1 + rnd.IntN(4) {
				begins, takes, patience := random(1400*time.Millisecond), random(3*time.Second), random(time.Second)
				calls.Go(func() {
					time.Sleep(begins) // fake time
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					_, _ = a.Call(ctx, address, "wait", []byte(takes.String()))
				})
			}
			time.Sleep(time.Until(lost)) // fake time
			way := rnd.IntN(3)
			if way != 0 {
				m.Cut("b", "a")
			}
			if way != 1 {
				m.Cut("a", "b")
			}
			calls.Wait()
			time.Sleep(random(12 * time.Second)) // fake time: more of the loss
			m.HealAll()
			began := time.Now()
			_, err := a.Call(t.Context(), address, "wait", []byte("0s"))
			for err != nil && time.Since(began) < time.Minute {
				time.Sleep(10 * time.Millisecond) // fake time: between two calls, until one gets through
				_, err = a.Call(t.Context(), address, "wait", []byte("0s"))
			}
			// Two failed tries are after 0.6 s. Until then it is TCP's next try, after 0.4 s at most, and the way.
			if took := time.Since(began); err != nil || took > 420*time.Millisecond {
				t.Errorf("seed %d: after %v of loss a call took %v: %v", seed, began.Sub(lost), took, err)
			}
		})
	}
}

// TestCallOnLeftConnectionIsAnsweredOnce: a connection is left because of a loss, with a call under way that takes
// long. That one is answered, once, by the server that got it before.
func TestCallOnLeftConnectionIsAnsweredOnce(t *testing.T) {
	for name, end := range map[string]func(a, b *server){
		"answered":  nil,
		"forgotten": func(a, b *server) { a.CloseCalls(string(b.address)) },
		"closed":    func(a, _ *server) { _ = a.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, func(t *testing.T, m memory) {
				m.Backoff(true)
				var handled atomic.Int32
				a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", func(o *Options) {
					takingItsTime(o)
					answer := o.Handle
					o.Handle = func(ctx context.Context, from, method string, body []byte) ([]byte, error) {
						if method == "long" {
							handled.Add(1)
						}
						return answer(ctx, from, method, body)
					}
				})
				address := string(b.address)
				long := make(chan error)
				go func() {
					_, err := a.Call(t.Context(), address, "long", []byte("8s"))
					long <- err
				}()
				time.Sleep(500 * time.Millisecond) // fake time: the call is under way
				m.Partition([]string{"a"}, []string{"b"})
				for range 8 {
					ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
					testenv.Fails(t, testenv.Err(a.Call(ctx, address, "wait", []byte("0s"))), "a call was answered")
					cancel()
				}
				m.HealAll()
				began := time.Now()
				if _, err := a.Call(t.Context(), address, "wait", []byte("0s")); err != nil || time.Since(began) > 200*time.Millisecond {
					t.Errorf("after the loss a call took %v: %v", time.Since(began), err)
				}
				testenv.Equal(t, a.connections(), 2, "connections instead of one that was left and a new one:")
				if end != nil {
					began = time.Now()
					end(a, b)
					if err := <-long; status.Code(err) != codes.Unavailable || time.Since(began) > 0 {
						t.Errorf("%v after %v", err, time.Since(began))
					}
					return
				}
				if err := <-long; err != nil || handled.Load() != 1 {
					t.Errorf("handled %d times: %v", handled.Load(), err)
				}
				time.Sleep(time.Second) // fake time: what was left is closed
				testenv.Equal(t, a.connections(), 1, "connections:")
			})
		})
	}
}
