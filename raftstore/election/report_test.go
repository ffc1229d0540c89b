// SPDX-License-Identifier: Apache-2.0

package election

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// What another voter answers to one that misses the leader in term 5, with a log up to 9 of term 4.
func TestReportResolvesAttempt(t *testing.T) {
	own := Report{ID: "b", Term: 5, LogTerm: 4, LogIndex: 9, Follower: true}
	for what, c := range map[string]struct {
		answer Report
		want   bool
	}{
		"a follower":                                  {Report{Term: 5, LogTerm: 4, LogIndex: 9, Follower: true}, false},
		"waits for pre-votes":                         {Report{Term: 5, LogTerm: 4, LogIndex: 9}, false},
		"leads in this term":                          {Report{Term: 5, LogTerm: 4, LogIndex: 9, Leads: true}, true},
		"led before, and knows of no other":           {Report{Term: 4, LogTerm: 4, LogIndex: 9, Leads: true}, false},
		"in a later term":                             {Report{Term: 6, LogTerm: 4, LogIndex: 1, Follower: true}, true},
		"is a candidate":                              {Report{Term: 5, LogTerm: 4, LogIndex: 9, Candidate: true}, true},
		"is a candidate, with a longer log":           {Report{Term: 5, LogTerm: 4, LogIndex: 10, Candidate: true}, true},
		"is a candidate, with a log of a later term":  {Report{Term: 5, LogTerm: 5, LogIndex: 3, Candidate: true}, true},
		"is a candidate, and cannot have this one's":  {Report{Term: 5, LogTerm: 4, LogIndex: 8, Candidate: true}, false},
		"is a candidate, with a log of an older term": {Report{Term: 5, LogTerm: 3, LogIndex: 20, Candidate: true}, false},
		"was a candidate, and is in an old term":      {Report{Term: 4, LogTerm: 4, LogIndex: 9, Follower: true}, false},
		"begins a candidacy, its term is not new":     {Report{Term: 5, LogTerm: 4, LogIndex: 9, Candidate: true, Follower: true}, true},
	} {
		testenv.Equal(t, c.answer.leavesNothing(own), c.want, "%s:", what)
	}
}

func TestReportsAreOrdered(t *testing.T) {
	b := Report{ID: "b", LogTerm: 4, LogIndex: 9}
	for what, c := range map[string]struct {
		a    Report
		want bool
	}{
		"the same log, the least id":  {Report{ID: "a", LogTerm: 4, LogIndex: 9}, true},
		"the same log, a greater id":  {Report{ID: "c", LogTerm: 4, LogIndex: 9}, false},
		"a longer log":                {Report{ID: "c", LogTerm: 4, LogIndex: 10}, true},
		"a shorter log":               {Report{ID: "a", LogTerm: 4, LogIndex: 8}, false},
		"a log of a later term":       {Report{ID: "c", LogTerm: 5, LogIndex: 2}, true},
		"a long log of an older term": {Report{ID: "a", LogTerm: 3, LogIndex: 20}, false},
	} {
		testenv.Equal(t, c.a.isAheadOf(b), c.want, "%s:", what)
		testenv.True(t, c.want != b.isAheadOf(c.a), "%s: both or neither come first", what)
	}
}
