// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"fmt"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestLiveServersHaveRecentContact(t *testing.T) {
	now := time.Now()
	member := func(at string, contact time.Duration) raftstore.Member {
		return raftstore.Member{Address: at, Contact: now.Add(-contact)}
	}
	self := raftstore.Member{Address: "10.0.0.1:6443", Self: true, Leader: true}
	never := raftstore.Member{Address: "10.0.0.9:6443"}
	members := []raftstore.Member{self, member("10.0.0.2:7443", unresponsiveAfter/4), member("10.0.0.3:6443", unresponsiveAfter+1), never, member("[fd00::4]:6443", 0)}
	var l LiveServers
	term := uint64(3)
	expect := func(what string, want ...string) {
		t.Helper()
		live, unheard := l.Addresses(term, members, now)
		testenv.EqualSlices(t, []string{fmt.Sprint(live), fmt.Sprint(unheard)}, want, "%s sees", what)
	}
	expect("a leader that has just been elected", "[10.0.0.1:6443 10.0.0.2:7443 10.0.0.3:6443 10.0.0.9:6443 [fd00::4]:6443]", "[]")
	now = now.Add(newLeaderWaits + 1)
	expect("a leader", "[10.0.0.1:6443 10.0.0.2:7443 [fd00::4]:6443]", "[10.0.0.3:6443 10.0.0.9:6443]")
	term += 2
	expect("a leader that lost an election and won the next one between two looks", "[10.0.0.1:6443 10.0.0.2:7443 10.0.0.3:6443 10.0.0.9:6443 [fd00::4]:6443]", "[]")
	members[0].Leader = false
	expect("another server, which leaves it to the leader,", "[]", "[]")
	members[0].Leader = true
	expect("a leader that is elected again", "[10.0.0.1:6443 10.0.0.2:7443 10.0.0.3:6443 10.0.0.9:6443 [fd00::4]:6443]", "[]")
}
