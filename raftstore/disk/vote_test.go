// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/test/diskfaults"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Raft stores a vote in two steps. Whenever the power goes, the one who got the
// vote in an earlier term must not be there with the later term.
func TestVoteIsNotMovedToLaterTerm(t *testing.T) {
	path := filepath.Join(memoryDir(t), "store")
	faults := &diskfaults.Faults{}
	o := options(path)
	o.Faults = faults
	d := testenv.Must(Open(o))(t)
	defer closeDir(t, d)
	vote := func(term uint64, candidate string) {
		t.Helper()
		testenv.NoError(t, errors.Join(d.Vars.SetUint64([]byte("CurrentTerm"), term),
			d.Vars.SetUint64([]byte("LastVoteTerm"), term), d.Vars.Set([]byte("LastVoteCand"), []byte(candidate))))
	}
	vote(5, "x")
	type saved struct {
		term      uint64
		candidate string
	}
	states := make(map[saved]bool)
	check := func() {
		cut := filepath.Join(t.TempDir(), "cut")
		if err := os.CopyFS(cut, os.DirFS(path)); err != nil {
			t.Error(err)
			return
		}
		v, err := verifyVars(filepath.Join(cut, varsFile))
		if err != nil {
			t.Error(err)
			return
		}
		at := &Vars{values: v.values}
		term, err1 := at.GetUint64([]byte("LastVoteTerm"))
		candidate, err2 := at.Get([]byte("LastVoteCand"))
		testenv.Check(t, errors.Join(err1, err2))
		states[saved{term, string(candidate)}] = true
	}
	faults.Reached = check // before each flush: after the one before
	vote(6, "y")
	faults.Reached = nil
	check()
	testenv.Require(t, !states[saved{6, "x"}] && states[saved{5, "x"}] && states[saved{6, "y"}], "votes that a crash leaves: %v", states)
	if term, err := d.Vars.GetUint64([]byte("LastVoteTerm")); err != nil || term != 6 {
		t.Fatalf("the vote is for term %d, %v", term, err)
	}
}
