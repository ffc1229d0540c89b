// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// What another voter answers to one that misses the leader in term 5, with a log up to 9 of term 4.
func TestStandingSettles(t *testing.T) {
	own := electionState{ID: "b", Term: 5, LogTerm: 4, LogIndex: 9, Follower: true}
	for what, c := range map[string]struct {
		answer electionState
		want   bool
	}{
		"a follower":                           {electionState{Term: 5, LogTerm: 4, LogIndex: 9, Follower: true}, false},
		"waits for pre-votes":                  {electionState{Term: 5, LogTerm: 4, LogIndex: 9}, false},
		"leads in this term":                   {electionState{Term: 5, LogTerm: 4, LogIndex: 9, Leads: true}, true},
		"led before, and knows of no other":    {electionState{Term: 4, LogTerm: 4, LogIndex: 9, Leads: true}, false},
		"in a later term":                      {electionState{Term: 6, LogTerm: 4, LogIndex: 1, Follower: true}, true},
		"stands":                               {electionState{Term: 5, LogTerm: 4, LogIndex: 9, Candidate: true}, true},
		"stands, with a longer log":            {electionState{Term: 5, LogTerm: 4, LogIndex: 10, Candidate: true}, true},
		"stands, with a log of a later term":   {electionState{Term: 5, LogTerm: 5, LogIndex: 3, Candidate: true}, true},
		"stands, and cannot have this one's":   {electionState{Term: 5, LogTerm: 4, LogIndex: 8, Candidate: true}, false},
		"stands, with a log of an older term":  {electionState{Term: 5, LogTerm: 3, LogIndex: 20, Candidate: true}, false},
		"stood before, and is in an old term":  {electionState{Term: 4, LogTerm: 4, LogIndex: 9, Follower: true}, false},
		"begins to stand, its term is not new": {electionState{Term: 5, LogTerm: 4, LogIndex: 9, Candidate: true, Follower: true}, true},
	} {
		testenv.Equal(t, c.answer.settles(own), c.want, "%s:", what)
	}
}

func TestStandingAhead(t *testing.T) {
	b := electionState{ID: "b", LogTerm: 4, LogIndex: 9}
	for what, c := range map[string]struct {
		a    electionState
		want bool
	}{
		"the same log, the least id":  {electionState{ID: "a", LogTerm: 4, LogIndex: 9}, true},
		"the same log, a greater id":  {electionState{ID: "c", LogTerm: 4, LogIndex: 9}, false},
		"a longer log":                {electionState{ID: "c", LogTerm: 4, LogIndex: 10}, true},
		"a shorter log":               {electionState{ID: "a", LogTerm: 4, LogIndex: 8}, false},
		"a log of a later term":       {electionState{ID: "c", LogTerm: 5, LogIndex: 2}, true},
		"a long log of an older term": {electionState{ID: "a", LogTerm: 3, LogIndex: 20}, false},
	} {
		testenv.Equal(t, c.a.ahead(b), c.want, "%s:", what)
		testenv.True(t, c.want != b.ahead(c.a), "%s: both or neither come first", what)
	}
}
