// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRestartCostsNoQuorum: a server may restart while the others are a majority, and where there is nothing to lose. A
// letter is a member: this server with a vote (s) or without (n), and others with a vote that answer (a), are
// unresponsive (u), stalled (d) or full (f), or without a vote (w).
func TestRestartCostsNoQuorum(t *testing.T) {
	for members, want := range map[string]bool{
		"s": true, "sw": true, "sa": false, "su": true, "saa": true, "sau": false, "sad": false, "saf": false, "suu": true, "saw": false,
		"naaa": true, "nau": true, "saaaa": true, "saaau": true, "saauu": false, "sauuu": true, "saaa": true, "saau": false,
	} {
		var states []raftstore.MemberState
		for _, m := range members {
			s := raftstore.MemberState{Answers: m != 'u', Stalled: m == 'd', Full: m == 'f'}
			s.Self, s.Voter = m == 's' || m == 'n', m != 'n' && m != 'w'
			states = append(states, s)
		}
		err := mayRestart(states)
		testenv.Equal(t, err == nil, want, "%s may restart (%v):", members, err)
	}
}

// TestServersRestartInTurn: no two servers have one turn, whatever the order in which they see the members.
func TestServersRestartInTurn(t *testing.T) {
	turns := map[time.Duration]bool{}
	for _, own := range []string{"c.1", "a.2", "a.1"} {
		var members []raftstore.Member
		for _, id := range []string{"c.1", "a.1", "a.2"} {
			members = append(members, raftstore.Member{RaftID: id, Self: id == own})
		}
		turns[restartDelay(members)] = true
	}
	testenv.True(t, len(turns) == 3 && turns[0] && turns[2*restartInterval], "the turns are %v", turns)
	testenv.Equal(t, restartDelay([]raftstore.Member{{RaftID: "a", Self: true}}), 0, "a single server waits")
}
