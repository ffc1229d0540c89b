// SPDX-License-Identifier: Apache-2.0

package raftstore

import "testing"

// A server that led applies what the next leader committed, perhaps before the
// store has taken notice of the change. It must not tell others of that as if
// it were its own term's: who has not heard of the change either may hold other
// entries there.
func TestCommittedByTheNextLeader(t *testing.T) {
	ctx := testContext(t)
	s := openStore(t, Options{Dir: t.TempDir()})
	if _, err := s.Client().Put(ctx, "a", "1"); err != nil {
		t.Fatal(err)
	}
	lead, _ := s.leadership.get()
	if term, index, ok := committedIndex(s.leadership, s.replica); !ok || term != lead.Term || index != s.replica.fsm.view().Applied() {
		t.Fatalf("as leader: term %d, entry %d, %v", term, index, ok)
	}
	s.leadership.setLeadership(Leadership{Leader: true, Term: lead.Term - 1}) // not noticed yet
	if term, index, ok := committedIndex(s.leadership, s.replica); ok {
		t.Fatalf("of another's: term %d, entry %d", term, index)
	}
}
