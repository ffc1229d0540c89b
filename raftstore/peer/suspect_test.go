// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// takingItsTime answers each call after as long as its body says.
func takingItsTime(o *Options) {
	o.Handle = func(ctx context.Context, _, _ string, body []byte) ([]byte, error) {
		takes, err := time.ParseDuration(string(body))
		if err != nil {
			return nil, err
		}
		select {
		case <-time.After(takes):
			return body, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// TestLossAmidCalls: any calls are under way to a leader when packets begin to be lost in silence, on a connection that
// may be new, of which some have been answered. Another one leads then, and long after that the leader is reached at
// once. All answers are those of their calls.
func TestLossAmidCalls(t *testing.T) {
	for seed := range uint64(60) {
		inMemory(t, func(t *testing.T, m memory) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			random := func(most time.Duration) time.Duration { return time.Duration(rnd.Int64N(int64(most))) }
			m.Backoff(true)
			for _, way := range [][2]string{{"a", "b"}, {"b", "a"}} {
				m.Delay(way[0], way[1], time.Millisecond, time.Millisecond)
			}
			a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", takingItsTime)
			address := string(b.address)
			call := func(ctx context.Context, takes time.Duration) error {
				answer, err := a.Call(ctx, address, "wait", []byte(takes.String()))
				testenv.False(t, err == nil && string(answer) != takes.String(),
					"seed %d: a call for %v was answered with %s", seed, takes, answer)
				return err
			}
			if rnd.IntN(2) == 0 { // else the first of the calls connects
				testenv.NoError(t, call(t.Context(), 0))
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			lost := time.Now().Add(time.Second)
			var calls sync.WaitGroup
			for range 1 + rnd.IntN(4) {
				begins, takes := random(1100*time.Millisecond), random(3*time.Second)
				calls.Go(func() {
					time.Sleep(begins) // fake time
					_ = call(ctx, takes)
				})
			}
			time.Sleep(time.Until(lost)) // fake time
			// Were only the calls lost, answers to earlier ones could come in up to the end, from a connection that
			// looks whole.
			m.Cut("b", "a")
			if rnd.IntN(2) == 0 {
				m.Cut("a", "b")
			}
			time.Sleep(500*time.Millisecond + random(500*time.Millisecond)) // fake time: until the leader is missed
			cancel(ErrLeaderMoved)
			calls.Wait()
			time.Sleep(5*time.Second + random(20*time.Second)) // fake time: the loss
			m.HealAll()
			began := time.Now()
			err := call(t.Context(), 0)
			for err != nil && time.Since(began) < time.Minute {
				time.Sleep(10 * time.Millisecond) // fake time: between two calls, until one gets through
				err = call(t.Context(), 0)
			}
			if took := time.Since(began); err != nil || took > 300*time.Millisecond {
				t.Errorf("seed %d: after the loss a call took %v: %v", seed, took, err)
			}
		})
	}
}

// TestHealthyButSlow: calls that take a healthy server long are answered, although others give up meanwhile, again and
// again. Connections are ended after one, two and four seconds without an answer, each up to 900 ms late: that depends
// on which of the impatient calls is given up first. A fourth one, after eight, would be a mistake: a call takes five.
func TestHealthyButSlow(t *testing.T) {
	for name, cause := range map[string]error{"given up": nil, "another one leads": ErrLeaderMoved} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, func(t *testing.T, m memory) {
				a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", takingItsTime)
				var over atomic.Bool
				var impatient sync.WaitGroup
				for range 4 {
					impatient.Go(func() {
						for !over.Load() {
							ctx, cancel := context.WithCancelCause(t.Context())
							time.AfterFunc(300*time.Millisecond, func() { cancel(cause) })
							testenv.Fails(t, testenv.Err(a.Call(ctx, string(b.address), "wait", []byte("5s"))), "a call was answered")
						}
					})
				}
				began, tries := time.Now(), 1
				_, err := a.Call(t.Context(), string(b.address), "wait", []byte("5s"))
				for ; err != nil && time.Since(began) < time.Minute; tries++ {
					_, err = a.Call(t.Context(), string(b.address), "wait", []byte("5s"))
				}
				if took := time.Since(began); err != nil || took > (1+2+4+8+5)*time.Second || tries > 8 {
					t.Errorf("took %v in %d tries: %v", took, tries, err)
				}
				over.Store(true)
				impatient.Wait()
			})
		})
	}
}

// TestIdleIsNoSilence: a connection that was not used for long is not ended because of a call that is given up soon.
func TestIdleIsNoSilence(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", takingItsTime)
		address := string(b.address)
		testenv.Must(a.Call(t.Context(), address, "wait", []byte("0s")))(t)
		time.Sleep(5 * time.Second) // fake time: not as long as gRPC waits before it asks
		long := make(chan error)
		go func() {
			_, err := a.Call(t.Context(), address, "wait", []byte("5s"))
			long <- err
		}()
		ctx, cancel := context.WithTimeout(t.Context(), a.opts.Timeout/2)
		defer cancel()
		testenv.Fails(t, testenv.Err(a.Call(ctx, address, "wait", []byte("5s"))), "a call was answered")
		testenv.Check(t, <-long)
	})
}
