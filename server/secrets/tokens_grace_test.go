// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// offClock is a clock that shows another time than the world's.
type offClock struct {
	clock.RealClock
	world *time.Time
	by    time.Duration
}

func (c *offClock) Now() time.Time { return c.world.Add(c.by) }

// TestGraceByAnyClock: however wrong a server's clock is, and however often it restarts, no token that was replaced
// works there for longer than its time from when it saw that. And where the clock is right it works that long.
func TestGraceByAnyClock(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	worked, ended := 0, 0
	for range 100 {
		world := begin
		c := &offClock{world: &world}
		if r.IntN(3) > 0 {
			c.by = time.Duration(r.IntN(100)-50) * time.Hour
		}
		s := &Tokens{o: TokenOptions{Folders: Folders{Server: t.TempDir()}, Clock: c, Logger: slog.New(slog.DiscardHandler)}}
		grace := time.Duration(1+r.IntN(10)) * time.Hour
		record := storedTokens{Generation: 1, Server: "now", Agent: "agent", Former: []formerToken{{Role: token.RoleServer, Secret: "old", Until: begin.Add(grace), Grace: grace}}}
		if r.IntN(3) == 0 {
			world = world.Add(time.Duration(r.IntN(3)) * time.Hour) // it was off at first
		}
		saw := world
		for range 40 {
			set := record.tokenSet("hash")
			testenv.NoError(t, s.countHere(&set, record))
			s.current.Store(&set)
			works := slices.ContainsFunc(set.Accepted(c.Now()), func(t token.Token) bool { return t.Secret == "old" })
			switch elapsed := world.Sub(saw); {
			case works && elapsed >= grace:
				t.Fatalf("by a clock that is off by %v it works %v after it was seen, and was given %v", c.by, elapsed, grace)
			case !works && c.by == 0 && world.Before(begin.Add(grace)):
				t.Fatalf("by a right clock it does not work %v after it was replaced, and was given %v", world.Sub(begin), grace)
			case works:
				worked++
			default:
				ended++
			}
			if r.IntN(3) == 0 { // a new start knows what is in the files
				s = &Tokens{o: s.o}
			}
			world = world.Add(time.Duration(r.IntN(40)) * time.Minute)
		}
	}
	testenv.False(t, worked < 100 || ended < 100, "it worked %d times and did not %d times: that tries nothing", worked, ended)
}

// TestGraceAfterTrouble: a clock that was set back while the server was off makes no new time, and neither does a later
// replacement.
func TestGraceAfterTrouble(t *testing.T) {
	world := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := &offClock{world: &world}
	s := &Tokens{o: TokenOptions{Folders: Folders{Server: t.TempDir()}, Clock: c, Logger: slog.New(slog.DiscardHandler)}}
	record := storedTokens{Generation: 1, Server: "now", Agent: "agent", Former: []formerToken{{Role: token.RoleServer, Secret: "old", Until: world.Add(time.Hour), Grace: time.Hour}}}
	valid := func() int {
		t.Helper()
		set := record.tokenSet("hash")
		testenv.NoError(t, s.countHere(&set, record))
		s.current.Store(&set)
		return len(set.Accepted(c.Now()))
	}
	testenv.Equal(t, valid(), 3, "tokens work at first:")
	s.current.Store(nil)
	c.by = -time.Hour
	testenv.Equal(t, valid(), 2, "tokens work after the clock was set back:")
	c.by = 0
	s.current.Store(nil)
	record.Former = append(record.Former, formerToken{Role: token.RoleAgent, Secret: "older agents'", Until: world.Add(2 * time.Hour), Grace: 2 * time.Hour})
	world = world.Add(59 * time.Minute)
	testenv.Equal(t, valid(), 4, "tokens work after another one was replaced:")
	world = world.Add(time.Minute)
	testenv.Equal(t, valid(), 3, "tokens work when the first one's time is over:")
	record.Former = nil
	valid()
	testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(s.o.Folders.Server, tokensSeenFile)))(t)), "[]\n", "what is kept of tokens that are gone:")
}
