// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var now = time.Unix(1_000_000, 0)

// missing is a case of voter b of three, in which its leader has been missing for half a second.
func missing(change func(*Case)) Case {
	c := Case{
		Observation: Observation{
			Now: now, Timeouts: Timeouts{Election: 300 * time.Millisecond, Votes: 900 * time.Millisecond}, Follower: true, Term: 5,
			Eligible: true, LeaderKnown: true, SinceContact: 500 * time.Millisecond, Voters: 3, Rank: 1,
		},
		Attempt: Attempt{Stage: Check},
	}
	change(&c)
	return c
}

// polled is a case in which voter b has asked the others, and c of them answered.
func polled(change func(*Case)) Case {
	return missing(func(c *Case) {
		c.Stage = Polled
		c.Own = Report{ID: "b", Follower: true, Term: 5, LogTerm: 4, LogIndex: 9, SinceContact: 500 * time.Millisecond}
		c.Answers = []Report{answer("c", nil)}
		change(c)
	})
}

func answer(id string, change func(*Report)) Report {
	r := Report{ID: id, Follower: true, Term: 5, LogTerm: 4, LogIndex: 9, SinceContact: 500 * time.Millisecond}
	if change != nil {
		change(&r)
	}
	return r
}

// slowCandidate is a candidate that waits long for its votes.
func slowCandidate(r *Report) { r.Candidate, r.VoteFlush = true, time.Minute }

// examples has a case for each rule.
var examples = map[string]Case{
	"leads":                missing(func(c *Case) { c.Leads, c.Follower = true, false }),
	"leader heard":         missing(func(c *Case) { c.SinceContact = 449 * time.Millisecond }),
	"pause":                missing(func(c *Case) { c.PauseUntil = now.Add(time.Millisecond) }),
	"woke up late":         missing(func(c *Case) { c.WokeLate = true }),
	"not eligible":         missing(func(c *Case) { c.Eligible = false }),
	"raft elects":          missing(func(c *Case) { c.LeaderKnown = false }),
	"raft has flush times": missing(func(c *Case) { c.Stage = RaftElects }),
	"leader missing":       missing(func(c *Case) { c.WokeLate, c.Delayed = true, true }),
	"candidate may be slower": polled(func(c *Case) {
		c.Answers, c.SinceContact = []Report{answer("c", slowCandidate)}, 2*time.Second
	}),
	"resolved": polled(func(c *Case) { c.Answers[0].Candidate = true }),
	"former leader may vote": polled(func(c *Case) {
		c.Voters, c.SinceContact = 4, 2*time.Second
		c.Answers = []Report{answer("c", nil)}
	}),
	"refused as leader": polled(func(c *Case) {
		c.Answers = []Report{answer("c", func(r *Report) { r.AskerUnanswered = true }), answer("d", func(r *Report) { r.AskerUnanswered = true })}
	}),
	"no majority yet": polled(func(c *Case) { c.Answers, c.Own.Exited, c.Exited = nil, true, true }),
	"no majority":     polled(func(c *Case) { c.Answers[0].SinceContact = 0 }),
	"voters ahead":    polled(func(c *Case) { c.Answers[0].ID = "a" }),
	"voter ahead is asking": polled(func(c *Case) {
		c.Stage, c.Later = Repolled, []Report{answer("a", func(r *Report) { r.Polling = true })}
	}),
	"overtaken":                polled(func(c *Case) { c.Term = 6 }),
	"voters ahead did nothing": polled(func(c *Case) { c.Stage, c.Answers[0].ID = Awaited, "a" }),
	"turn":                     polled(func(*Case) {}),
	"candidacy begun":          missing(func(c *Case) { c.Stage = Begun }),
	"candidacy not accepted":   missing(func(c *Case) { c.Stage = Refused }),
}

// Each rule decides its example, and without the rule something else would be done.
func TestEachRuleDecidesItsExample(t *testing.T) {
	walk(t, Rules, examples)
	walk(t, LeaderRules, leaderExamples)
}

func walk[C any, A comparable](t *testing.T, rules []Rule[C, A], examples map[string]C) {
	testenv.Equal(t, len(examples), len(rules), "examples")
	for i, r := range rules {
		c, ok := examples[r.Name]
		testenv.Require(t, ok, "rule %q has no example", r.Name)
		testenv.True(t, strings.HasSuffix(r.Reason, "."), "the reason of %q is no sentence", r.Name)
		got, action := firstRule(rules, c)
		testenv.Equal(t, got.Name, r.Name, "the rule that decides the example of %q", r.Name)
		without := slices.Delete(slices.Clone(rules), i, i+1)
		if slices.ContainsFunc(without, func(o Rule[C, A]) bool { return o.Applies(c) }) {
			other, instead := firstRule(without, c)
			testenv.True(t, instead != action, "%q does the same as %q in its example", other.Name, r.Name)
		}
	}
}

var leaderExamples = map[string]LeaderCase{
	"progress":         stuck(func(c *LeaderCase) { c.Confirmed++ }),
	"not long":         stuck(func(c *LeaderCase) { c.Transfer = 2 * time.Second }),
	"withholds":        stuck(func(c *LeaderCase) { c.Withholds = true }),
	"not asked":        stuck(func(c *LeaderCase) { c.Polled = false }),
	"no better leader": stuck(func(c *LeaderCase) { c.Flushes.Without = 2 * time.Second }),
	"stuck":            stuck(func(*LeaderCase) {}),
}

// stuck is a case of a leader that has waited for confirmations for 4 s.
func stuck(change func(*LeaderCase)) LeaderCase {
	c := LeaderCase{
		Now: now, Term: 5, Commit: 8, Last: 9, Confirmed: 16, Polled: true, Flushes: FlushTimes{Without: time.Millisecond},
		Before: Progress{Term: 5, Commit: 8, Confirmed: 16, Since: now.Add(-4 * time.Second)},
	}
	change(&c)
	return c
}

// A leader that steps down again and again waits for twice as long each time, until something is committed.
func TestStuckLeaderWaitsLongerEachTime(t *testing.T) {
	c := stuck(func(*LeaderCase) {})
	for want := 2 * StuckAfter; want < maxStuck; want *= 2 {
		action, after := NextOfLeader(c)
		testenv.True(t, action == StepDown && after.Timeout == want, "%v, %v", action, after)
		c.Before, c.Now = after, c.Now.Add(2*want)
	}
	c.Commit++
	_, after := NextOfLeader(c)
	testenv.Equal(t, after.Timeout, 0, "after a commit")
}

// No voter becomes a candidate that hears the leader, or of which a majority hears it. Of two voters that have observed
// the same, and that answer each other, at most one becomes a candidate at once.
func TestInvariantsOfCandidacies(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	candidates := 0
	for range 50_000 {
		voters := 3 + 2*r.IntN(2)
		reports := make([]Report, voters)
		for i := range reports {
			reports[i] = Report{
				ID: string(rune('a' + i)), SinceContact: time.Duration(r.IntN(3000)) * time.Millisecond, Follower: r.IntN(4) > 0,
				Candidate: r.IntN(8) == 0, Polling: r.IntN(4) == 0, Exited: r.IntN(8) == 0, Unanswered: r.IntN(8) == 0,
				AskerUnanswered: r.IntN(8) == 0, Term: 5 + uint64(r.IntN(8)/7), LogTerm: 4, LogIndex: 8 + uint64(r.IntN(2)),
				ClockOff: r.IntN(8) == 0, VoteFlush: time.Duration(r.IntN(2)*r.IntN(10)) * time.Second,
				FlushDuration: time.Duration(r.IntN(3)) * time.Second,
			}
		}
		late, tries := r.IntN(2) == 0, r.IntN(5)
		of := func(i int) Case {
			own := reports[i]
			return Case{
				Observation: Observation{
					Now: now, Timeouts: Timeouts{Election: 300 * time.Millisecond, Votes: time.Second}, Follower: own.Follower, Term: own.Term,
					Eligible: true, LeaderKnown: true, SinceContact: own.SinceContact, Exited: own.Exited, Unanswered: own.Unanswered,
					Voters: voters, Rank: i, WokeLate: late,
				},
				Memory: Memory{Tries: tries},
				Attempt: Attempt{
					Stage: Polled, Own: own, Answers: slices.Delete(slices.Clone(reports), i, i+1), LeaderAsked: true, Flush: time.Millisecond,
				},
			}
		}
		var at []raft.ServerID
		for i := range reports {
			c := of(i)
			if a, _ := Next(c); a.Kind != BecomeCandidate {
				continue
			}
			at = append(at, raft.ServerID(reports[i].ID))
			missed := 0
			for _, report := range reports {
				if report.Misses(c.AgreeAfter()) {
					missed++
				}
			}
			if missed <= voters/2 || !c.MissesLeader() {
				t.Fatalf("seed %d: %s becomes a candidate while a majority hears the leader: %+v", seed, reports[i].ID, reports)
			}
		}
		candidates += len(at)
		equal := slices.DeleteFunc(at, func(id raft.ServerID) bool { // of the candidates, those that miss the leader as the others have it
			return reports[id[0]-'a'].Term != 5
		})
		testenv.Require(t, len(equal) <= 1, "seed %d: %v become candidates at once: %+v", seed, equal, reports)
	}
	testenv.Require(t, candidates > 100, "seed %d: only %d candidates", seed, candidates)
}

// The pause between attempts doubles, and is bounded.
func TestPausesGrowUpToABound(t *testing.T) {
	c := polled(func(c *Case) { c.Answers = nil })
	var pauses []time.Duration
	for range 20 {
		a, m := Next(c)
		testenv.True(t, a.Kind == Pause && m.PauseUntil.Equal(now.Add(a.For)), "%v", a)
		pauses, c.Memory = append(pauses, a.For), m
	}
	testenv.True(t, slices.IsSorted(pauses) && pauses[10] == CandidacyDelay && pauses[11] == 2*CandidacyDelay && pauses[19] == maxPause, "%v", fmt.Sprint(pauses))
}
