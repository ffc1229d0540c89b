// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestCallsWithoutAnswer: any answer is one, also an error, and one to another call. A call that finds no connection,
// or on whose connection nothing arrives for silentAfter, has none.
func TestCallsWithoutAnswer(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		var mu sync.Mutex // calls end in goroutines of their own
		var outcomes []string
		note := func(outcome string) func(address string) {
			return func(address string) {
				mu.Lock()
				defer mu.Unlock()
				outcomes = append(outcomes, address+outcome)
			}
		}
		is := func(what string, want ...string) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			testenv.True(t, slices.Equal(outcomes, want), "%s: %q, want %q", what, outcomes, want)
			outcomes = nil
		}
		for _, way := range [][2]string{{"a", "b"}, {"b", "a"}} {
			m.Delay(way[0], way[1], time.Millisecond, 0)
		}
		a := start(t, m, 0, "a.1", func(o *Options) {
			o.Answered, o.Unanswered = note(" answered"), note(" did not")
		})
		start(t, m, 1, "b.1", serving)
		call := func(method string, within time.Duration) {
			ctx, cancel := context.WithCancel(t.Context()) // the server would learn of a deadline
			defer cancel()
			defer time.AfterFunc(within, cancel).Stop()
			_, _ = a.Call(ctx, "b", method, nil) // the outcome counts
		}
		call("echo", time.Second)
		call("status", time.Second)
		is("an answer and an error", "b answered", "b answered")
		call("hang", a.silentAfter()/2)
		is("given up early")
		time.Sleep(time.Second) // fake time; the server notices, too
		call("hang", 2*a.silentAfter())
		is("given up late", "b did not")
		time.Sleep(time.Second) // fake time
		waits := make(chan struct{})
		go func() {
			call("hang", 2*a.silentAfter())
			close(waits)
		}()
		time.Sleep(a.silentAfter() / 2) // fake time
		call("echo", time.Second)
		<-waits
		is("another call was answered meanwhile", "b answered", "b answered")
		time.Sleep(time.Second) // fake time
		_, _ = a.Call(t.Context(), "c", "echo", nil)
		is("nobody listens", "c did not")
	})
}

// TestAnswersConnectsAgain: Answers goes by no earlier failure to connect and by no connection on which nothing
// arrives, and ends at once where the server cannot be connected to.
func TestAnswersConnectsAgain(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		for _, way := range [][2]string{{"a", "b"}, {"b", "a"}} {
			m.Delay(way[0], way[1], time.Millisecond, 0)
		}
		m.Backoff(true)
		var shut atomic.Bool
		a := start(t, m, 0, "a.1", func(o *Options) {
			dial := o.Dial
			o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
				if shut.Load() {
					return nil, errors.New("no file descriptors")
				}
				return dial(ctx, address)
			}
		})
		start(t, m, 1, "b.1", serving)
		is := func(what, method string, want bool, within time.Duration) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			if _, got := a.Answers(ctx, "b", method); got != want || time.Since(began) > within {
				t.Errorf("%s: %v after %v, want %v within %v", what, got, time.Since(began), want, within)
			}
		}
		is("a first call", "who", true, 10*time.Millisecond)
		is("an error", "status", true, 10*time.Millisecond)
		is("a call that hangs", "hang", false, time.Second)
		m.Cut("b", "a")
		lost, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		_, err := a.Call(lost, "b", "echo", nil)
		testenv.Require(t, err != nil, "an answer over a link that is cut")
		time.Sleep(2 * time.Second) // fake time; TCP retransmits seldom by now
		m.Heal("b", "a")
		is("the connection that there is stands still", "who", true, 20*time.Millisecond)
		a.CloseCalls("b")
		shut.Store(true)
		is("no connection", "who", false, 10*time.Millisecond)
		shut.Store(false)
		is("after a failure to connect", "who", true, 50*time.Millisecond)
	})
}
