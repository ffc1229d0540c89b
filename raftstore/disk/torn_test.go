// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// randomEntry makes an entry: small ones, some of several sectors, many of zeros only.
func randomEntry(r *rand.Rand, index uint64) *raft.Log {
	data := make([]byte, r.IntN(1<<r.IntN(13)))
	if r.IntN(2) == 0 {
		for i := range data {
			data[i] = byte(r.Uint32())
		}
	}
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
}

// checkEntries compares the log with what was appended, up to the last index
// that the log has, and returns that.
func checkEntries(t *testing.T, d *Dir, want []*raft.Log) uint64 {
	t.Helper()
	last, err := d.Log.LastIndex()
	testenv.Require(t, err == nil && last <= uint64(len(want)), "last entry %d of %d, %v", last, len(want), err)
	for i := uint64(1); i <= last; i++ {
		var got raft.Log
		if err := d.Log.GetLog(i, &got); err != nil || !bytes.Equal(got.Data, want[i-1].Data) || got.Term != 1 {
			t.Fatalf("entry %d: %v, %v", i, got, err)
		}
	}
	return last
}

func readAll(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	names, err := filepath.Glob(filepath.Join(dir, logDir, "*"))
	testenv.NoError(t, err)
	for _, name := range names {
		files[filepath.Base(name)], err = os.ReadFile(name)
		testenv.NoError(t, err)
	}
	return files
}

// TestTornAppendKeepsAcknowledgedEntries cuts the power in the middle of an append: any sectors of it
// may be on disk and any not. What was acknowledged before is always there, an
// append that is complete too, and of another at most a beginning; and the log
// goes on from there, time and again.
func TestTornAppendKeepsAcknowledgedEntries(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	path := filepath.Join(memoryDir(t), "store")
	var want []*raft.Log
	for range 150 {
		d := mustOpen(t, path)
		testenv.NoError(t, d.Vars.SetUint64([]byte("CurrentTerm"), 1))
		if got := checkEntries(t, d, want); got != uint64(len(want)) {
			t.Fatalf("%d entries of %d", got, len(want))
		}
		before := readAll(t, path)
		acknowledged := len(want)
		var batch []*raft.Log
		for range 1 + r.IntN(4) {
			batch = append(batch, randomEntry(r, uint64(len(want)+1)))
			want = append(want, batch[len(batch)-1])
		}
		testenv.NoError(t, errors.Join(d.Log.StoreLogs(batch), d.Close()))
		complete := tear(t, r, path, before)
		d = mustOpen(t, path)
		last := checkEntries(t, d, want)
		if last < uint64(acknowledged) || complete && last != uint64(len(want)) {
			t.Fatalf("%d entries are left of %d and a batch of %d", last, acknowledged, len(batch))
		}
		want = want[:last]
		testenv.NoError(t, d.Close())
	}
}

// tear puts back some of the sectors that changed, and says whether none. A
// new segment was on disk before anything else was written, and the seal of the
// old one before anything was written to the new.
func tear(t *testing.T, r *rand.Rand, path string, before map[string][]byte) (complete bool) {
	t.Helper()
	after := readAll(t, path)
	complete = true
	rotated := len(after) > len(before)
	sealLost := false
	for _, old := range []bool{true, false} {
		for name, now := range after {
			was, existed := before[name]
			if existed != old {
				continue
			}
			if !existed { // as made: a header
				was = make([]byte, len(now))
				copy(was, now[:segmentHeader])
			}
			torn := bytes.Clone(now)
			for at := 0; at < len(now); at += sector {
				if bytes.Equal(was[at:at+sector], now[at:at+sector]) {
					continue
				}
				if sealLost || r.IntN(3) == 0 {
					copy(torn[at:at+sector], was[at:at+sector])
					complete = false
					sealLost = sealLost || rotated && existed
				}
			}
			testenv.NoError(t, os.WriteFile(filepath.Join(path, logDir, name), torn, 0o600))
		}
	}
	return complete
}

// TestLostSectorIsNoTornAppend makes zeros of a sector in the middle of what was
// acknowledged. That is no torn append.
func TestLostSectorIsNoTornAppend(t *testing.T) {
	path := filepath.Join(memoryDir(t), "store")
	d := mustOpen(t, path)
	for i := uint64(1); i <= 20; i++ {
		testenv.NoError(t, d.Log.StoreLog(&raft.Log{Index: i, Term: 1, Data: bytes.Repeat([]byte("x"), 900)}))
	}
	testenv.NoError(t, d.Close())
	file := segmentPath(filepath.Join(path, logDir), 1)
	whole := testenv.Must(os.ReadFile(file))(t)
	for at := 0; at < 17*1000; at += sector {
		lost := bytes.Clone(whole)
		clear(lost[at : at+sector])
		testenv.NoError(t, os.WriteFile(file, lost, 0o600))
		var damage *DamageError
		if _, err := Open(options(path)); !errors.As(err, &damage) || damage.Path != file {
			t.Errorf("without the sector at %d: %v", at, err)
		}
	}
}

// TestLogMatchesModelOverRestarts does what raft does to a log, in any order, with restarts, and
// compares it with a list.
func TestLogMatchesModelOverRestarts(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	path := filepath.Join(memoryDir(t), "store")
	d := mustOpen(t, path)
	testenv.NoError(t, d.Vars.SetUint64([]byte("CurrentTerm"), 3))
	var want []*raft.Log // without gaps
	check := func(what string) {
		t.Helper()
		first, _ := d.Log.FirstIndex()
		last, _ := d.Log.LastIndex()
		if len(want) == 0 {
			testenv.Require(t, first == 0 && last == 0, "%s: entries %d to %d in an empty log", what, first, last)
			return
		}
		if first != want[0].Index || last != want[len(want)-1].Index {
			t.Fatalf("%s: entries %d to %d, want %d to %d", what, first, last, want[0].Index, want[len(want)-1].Index)
		}
		for _, e := range want {
			var got raft.Log
			if err := d.Log.GetLog(e.Index, &got); err != nil || !bytes.Equal(got.Data, e.Data) || got.Type != e.Type || !got.AppendedAt.Equal(e.AppendedAt) {
				t.Fatalf("%s: entry %d: %v, want %v: %v", what, e.Index, got, e, err)
			}
		}
	}
	next, snapshot := uint64(1), uint64(0)
	for range 400 {
		var what string
		switch kind := r.IntN(10); {
		case kind < 6:
			var batch []*raft.Log
			for range 1 + r.IntN(5) {
				e := randomEntry(r, next)
				e.Term = 3
				batch = append(batch, e)
				next++
			}
			want = append(want, batch...)
			what = fmt.Sprintf("append %d", len(batch))
			testenv.NoError(t, d.Log.StoreLogs(batch))
		case kind < 7 && len(want) > 10: // compaction
			n := r.IntN(len(want) - 5)
			what = fmt.Sprintf("delete %d at the beginning", n+1)
			if at := want[n].Index; at > snapshot {
				snapshot = at
				testenv.NoError(t, writeSnapshot(d, at, "state"))
			}
			testenv.NoError(t, d.Log.DeleteRange(want[0].Index, want[n].Index))
			want = want[n+1:]
		case kind < 8 && len(want) > 0: // a conflict with the leader
			n := r.IntN(len(want))
			if want[n].Index <= snapshot { // that was committed
				continue
			}
			what = fmt.Sprintf("delete %d at the end", len(want)-n)
			testenv.NoError(t, d.Log.DeleteRange(want[n].Index, want[len(want)-1].Index))
			next = want[n].Index
			want = want[:n]
		case kind < 9 && r.IntN(4) == 0 && len(want) > 0: // a snapshot from the leader
			what = "delete all and leap"
			testenv.NoError(t, d.Log.DeleteRange(want[0].Index, want[len(want)-1].Index))
			want, next = nil, next+uint64(r.IntN(100))
			snapshot = next - 1
			testenv.NoError(t, writeSnapshot(d, next-1, "state"))
		default:
			what = "restart"
			snapshot = next - 1
			if err := writeSnapshot(d, next-1, "state"); err != nil && next > 1 {
				t.Fatal(err)
			}
			testenv.NoError(t, d.Close())
			d = mustOpen(t, path)
			// Part of what was deleted at the beginning may be back.
			if first, _ := d.Log.FirstIndex(); len(want) > 0 && first < want[0].Index {
				testenv.NoError(t, d.Log.DeleteRange(first, want[0].Index-1))
			} else if last, _ := d.Log.LastIndex(); len(want) == 0 && last > 0 {
				testenv.NoError(t, d.Log.DeleteRange(first, last))
			}
		}
		check(what)
	}
	testenv.NoError(t, d.Close())
}
