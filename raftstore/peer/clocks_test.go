// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestBothEndsCompareClocks: each end of a call learns how far the other one's clock is ahead, soon after one of the
// clocks is set, and no call that took long counts.
func TestBothEndsCompareClocks(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		var ahead, asked atomic.Int64 // by how much b's clock is ahead; calls with a question
		a := start(t, m, 0, "a.1", nil)
		b := start(t, m, 1, "b.1", func(o *Options) {
			o.Wall = func() time.Time {
				asked.Add(1)
				return time.Now().Add(time.Duration(ahead.Load()))
			}
			o.Handle = func(_ context.Context, _, method string, body []byte) ([]byte, error) {
				if method == "slow" {
					time.Sleep(maxComparison + time.Second) // fake time
				}
				return body, nil
			}
		})
		m.Delay("a", "b", 20*time.Millisecond, 0)
		m.Delay("b", "a", 20*time.Millisecond, 0)
		call := func(method string) {
			t.Helper()
			testenv.Must(a.Call(t.Context(), string(b.address), method, nil))(t)
		}
		knows := func(s *server, id raft.ServerID, want time.Duration) {
			t.Helper()
			o, ok := s.Offset(id)
			testenv.True(t, ok && (o.By-want).Abs() <= o.Within && o.Within < 100*time.Millisecond, "%s is ahead by %+v, %v, want %v", id, o, ok, want)
		}
		_, known := a.Offset(b.id)
		testenv.False(t, known, "without a call the clocks were compared")
		for _, now := range []time.Duration{0, -400 * 24 * time.Hour, 3 * time.Hour} {
			ahead.Store(int64(now))
			time.Sleep(compareEvery) // fake time
			call("echo")
			call("echo") // tells the other end
			knows(a, b.id, now)
			knows(b, a.id, -now)
		}
		time.Sleep(compareEvery) // fake time
		asked.Store(0)
		for range 10 {
			call("echo")
		}
		testenv.Equal(t, asked.Load(), 1, "in less than the interval, clocks were compared so often:")

		ahead.Store(0)
		time.Sleep(compareEvery) // fake time
		call("slow")
		knows(a, b.id, 3*time.Hour)
		a.CompareClocks(string(b.address))
		call("echo")
		knows(a, b.id, 0)
	})
}

// TestOlderServersCompareNoClocks: a server that does not know the question gives no time, and one that does not ask
// gets none.
func TestOlderServersCompareNoClocks(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a, b := start(t, m, 0, "a.1", serving), start(t, m, 1, "b.1", serving)
		testenv.Must(a.Call(t.Context(), string(b.address), "echo", nil))(t)
		c := a.callers[string(b.address)]
		before, _ := a.Offset(b.id)
		for _, answer := range [][]string{nil, {"x"}, {"1", "2"}} {
			q := &comparison{began: time.Now(), wall: time.Now()}
			if answer != nil {
				q.answer = map[string][]string{clockHeader: answer}
			}
			a.recordComparison(c, q)
			after, _ := a.Offset(b.id)
			testenv.Equal(t, after, before, "with the answer %q", answer)
		}
		b.answerClock(t.Context(), string(a.id))
	})
}
