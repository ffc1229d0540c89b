// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// This file damages every kind of file at every kind of place in every way
// that a disk, or a careless copy, does. A directory then opens with all that
// was acknowledged, or is refused with the file's name and left alone.
//
// Some damage makes an earlier state of the same directory of it, and cannot be
// distinguished from that without writing more for each append; see what is called
// undetectable below.

// places are the classes of offsets in a file's content.
func places(r *rand.Rand, b []byte, number uint64) map[string]int {
	size := max(len(b), 1)
	used := max(len(bytes.TrimRight(b, "\x00")), 1)
	clamp := func(at int) int { return max(0, min(at, size-1)) }
	p := map[string]int{
		"start": 0, "header": clamp(r.IntN(72)), "used part": r.IntN(used), "end of what is used": used - 1,
		"behind what is used": clamp(used), "sector's edge": clamp(r.IntN(used) &^ (sector - 1)),
		"page's header": clamp(r.IntN(used)&^4095 + r.IntN(48)), "anywhere": r.IntN(size), "end": size - 1,
		"end's vicinity": clamp(size - 1 - r.IntN(72)),
	}
	if number > 0 {
		var records []int
		for at := segmentHeader; at+recordHeader <= len(b); {
			record, ok := decodeRecord(b[at:], number, int64(at))
			if !ok {
				break
			}
			records = append(records, at)
			at += int(record.size())
		}
		if len(records) > 0 {
			at := records[r.IntN(len(records))]
			p["record's header"] = at + r.IntN(recordHeader)
			p["record's payload"] = clamp(at + recordHeader + r.IntN(200))
			p["last record"] = records[len(records)-1] + r.IntN(recordHeader)
		}
	}
	return p
}

// harms change a file's content at a place. older is the file's content at an
// earlier moment, or nil; other that of another file of its kind.
var harms = map[string]func(r *rand.Rand, b, older, other []byte, at int) []byte{
	"flip a bit": func(r *rand.Rand, b, _, _ []byte, at int) []byte {
		if len(b) > 0 {
			b[at] ^= 1 << r.IntN(8)
		}
		return b
	},
	"truncate": func(_ *rand.Rand, b, _, _ []byte, at int) []byte { return b[:min(at, len(b))] },
	"append":   func(r *rand.Rand, b, _, _ []byte, _ int) []byte { return append(b, make([]byte, 1+r.IntN(5000))...) },
	"zero a sector": func(_ *rand.Rand, b, _, _ []byte, at int) []byte {
		at &^= sector - 1
		clear(b[at:min(at+sector, len(b))])
		return b
	},
	"swap sectors": func(r *rand.Rand, b, _, _ []byte, at int) []byte {
		if len(b) < 2*sector {
			return b
		}
		at = min(at, len(b)-sector) &^ (sector - 1)
		to := r.IntN(len(b)-sector) &^ (sector - 1)
		one := bytes.Clone(b[at : at+sector])
		copy(b[at:at+sector], b[to:to+sector])
		copy(b[to:], one)
		return b
	},
	"tear": func(r *rand.Rand, b, older, _ []byte, at int) []byte { // the sectors from here on, or some of them, are old
		old := make([]byte, len(b))
		copy(old, older)
		for from := at &^ (sector - 1); from < len(b) && from < at+8*sector; from += sector {
			if r.IntN(2) == 0 {
				copy(b[from:min(from+sector, len(b))], old[from:])
			}
		}
		return b
	},
	"garbage": func(r *rand.Rand, b, _, _ []byte, at int) []byte {
		for i := at; i < min(at+1+r.IntN(2*sector), len(b)); i++ {
			b[i] = byte(r.Uint32())
		}
		return b
	},
	"misplace": func(_ *rand.Rand, b, _, other []byte, at int) []byte { // a sector that belongs to another file
		at &^= sector - 1
		if at < len(other) {
			copy(b[at:], other[at:min(at+sector, len(other))])
		}
		return b
	},
}

// injector opens damaged copies of one life.
type injector struct {
	t    *testing.T
	life *life
	dir  string
	// outcomes counts what came of it.
	harmless, refused, earlier int
}

// try opens a directory with this content. It may be one that looks like an
// earlier state of the same directory only where that cannot be known.
func (in *injector) try(what string, damagedImage image, undetectable bool) {
	in.t.Helper()
	path := filepath.Join(in.dir, "copy")
	damagedImage.write(in.t, path)
	defer func() { testenv.NoError(in.t, os.RemoveAll(path)) }()
	d, err := Open(injectOptions(path))
	if err != nil {
		in.refused++
		in.named(what, path, err)
		after := readImage(in.t, path)
		delete(after, "LOCK")
		testenv.True(in.t, maps.EqualFunc(after, damagedImage, bytes.Equal), "%s: the refused open changed something", what)
		return
	}
	whole, err := in.compare(d)
	if err = errors.Join(err, d.Close()); err != nil {
		in.t.Errorf("%s: opened, and %v", what, err)
	}
	switch {
	case whole:
		in.harmless++
	case undetectable:
		in.earlier++
	default:
		in.t.Errorf("%s: opened, and something that was acknowledged is gone", what)
	}
}

// named checks that an error is one that says what to do about which file.
func (in *injector) named(what, path string, err error) {
	in.t.Helper()
	var damage *DamageError
	var format *FormatError // a flipped digit may look like a newer version
	switch {
	case errors.As(err, &damage) && strings.HasPrefix(damage.Path, path):
	case errors.As(err, &format):
	default:
		in.t.Errorf("%s: not the error of a damaged file: %v", what, err)
	}
}

// compare says whether everything that was acknowledged is there. It fails if
// there is anything that never was.
func (in *injector) compare(d *Dir) (whole bool, err error) {
	list, err := d.Snapshots.List()
	if err != nil {
		return false, err
	}
	end := uint64(0)
	for _, meta := range list {
		_, r, err := d.Snapshots.Open(meta.ID)
		if err != nil {
			return false, err
		}
		state, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return false, err
		}
		if !strings.HasPrefix(string(state), fmt.Sprintf("state of %d", meta.Index)) {
			return false, fmt.Errorf("snapshot %d holds %.20q", meta.Index, state)
		}
		end = meta.Index
	}
	last, err := d.Log.LastIndex()
	if err != nil {
		return false, err
	}
	first, err := d.Log.FirstIndex()
	if err != nil {
		return false, err
	}
	for i := first; i <= last && i > 0; i++ {
		var e raft.Log
		if err := d.Log.GetLog(i, &e); err != nil {
			return false, err
		}
		if !sameEntry(&e, in.life.entries[i-1]) {
			return false, fmt.Errorf("entry %d is another one", i)
		}
	}
	term, err1 := d.Vars.GetUint64([]byte("CurrentTerm"))
	vote, err2 := d.Vars.Get([]byte("LastVoteCand"))
	if err := errors.Join(err1, err2); err != nil {
		return false, err
	}
	complete := last == uint64(len(in.life.entries)) && (first <= end+1)
	return complete && term == 3 && string(vote) == "b", nil
}

// TestInjectedHarmIsFound does every harm at every kind of place of every kind of file once, and then goes on until its
// time is over: CORACLE_RANDOM_TIME=10m.
func TestInjectedHarmIsFound(t *testing.T) {
	l, r := live(t), randomOf(t)
	in := &injector{t: t, life: l, dir: memoryDir(t)}
	kinds := l.kinds(t)
	until := newBudget(t, 2*time.Second).until
	idle := 0 // harms that left the file as it was
	for round := 0; round == 0 || time.Now().Before(until); round++ {
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			name := kinds[kind]
			var older, other []byte
			for _, m := range l.moments[:len(l.moments)-1] {
				if m[name] != nil {
					older = m[name]
				}
			}
			for n, b := range l.last() {
				if n != name && filepath.Ext(n) == filepath.Ext(name) {
					other = b
				}
			}
			number, _ := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), segmentSuffix), 10, 64) // 0: no segment
			at := places(r, l.last()[name], number)
			for _, place := range slices.Sorted(maps.Keys(at)) {
				for _, harm := range slices.Sorted(maps.Keys(harms)) {
					now := maps.Clone(l.last())
					now[name] = harms[harm](r, bytes.Clone(now[name]), older, other, at[place])
					if bytes.Equal(now[name], l.last()[name]) {
						idle++
					}
					what := fmt.Sprintf("%s, %s, at byte %d (%s)", kind, harm, at[place], place)
					in.try(what, now, in.isOlderState(kind, harm, now[name]))
				}
			}
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d harmless, %d refused, %d look like an earlier state, %d changed nothing", in.harmless, in.refused, in.earlier, idle)
	in.floors(idle)
}

// floors fails a test in which too little happened to prove anything. The first round alone has more of each.
func (in *injector) floors(idle int) {
	in.t.Helper()
	tried := in.harmless + in.refused + in.earlier
	if tried < 400 || in.refused < 200 || in.harmless < 20 || in.earlier < 1 || idle > tried/3 {
		in.t.Errorf("too little happened: %d tried, %d refused, %d harmless, %d look like an earlier state, %d changed nothing",
			tried, in.refused, in.harmless, in.earlier, idle)
	}
}

// isOlderState says whether damage looks like a crash, or like an earlier state:
// sectors of the variables as they were before the last change, a vote; or the
// end of the newest segment, where whole sectors of the last appends became
// what they were before.
func (in *injector) isOlderState(kind, harm string, now []byte) bool {
	if kind == "variables" {
		return harm == "tear"
	}
	if kind != "newest segment" {
		return false
	}
	name := in.life.kinds(in.t)["newest segment"]
	was := in.life.last()[name]
	start := lastAppend(was, name)
	if older := in.life.moments[1][name]; older != nil {
		start = min(start, len(bytes.TrimRight(older, "\x00")))
	}
	if len(now) != len(was) {
		return false
	}
	for from := 0; from < len(was); from += sector {
		to := from + sector
		if !bytes.Equal(now[from:to], was[from:to]) && !isZero(was[from:to], 0, sector) {
			// In the last appends, and to zeros or to what was there before them.
			if to <= start || len(bytes.Trim(now[max(from, start):to], "\x00")) > 0 &&
				!bytes.Equal(now[from:to], in.life.moments[1][name][from:to]) {
				return false
			}
		}
	}
	return true
}

// lastAppend is where the last record of a segment starts.
func lastAppend(b []byte, name string) int {
	number, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), segmentSuffix), 10, 64)
	if err != nil {
		panic(err)
	}
	start := segmentHeader
	for at := start; at+recordHeader <= len(b); {
		r, ok := decodeRecord(b[at:], number, int64(at))
		if !ok {
			break
		}
		start = at
		at += int(r.size())
	}
	return start
}

// TestLostAndOldFiles removes files, and puts earlier copies of them back.
func TestLostAndOldFiles(t *testing.T) {
	l := live(t)
	in := &injector{t: t, life: l, dir: memoryDir(t)}
	for name := range l.last() {
		now := maps.Clone(l.last())
		delete(now, name)
		before := in.refused
		in.try(name+" is gone", now, false)
		// The first segment has only entries that the snapshot covers.
		if must := name != peersFile && name != reserveFile && name != l.kinds(t)["first segment"]; (in.refused > before) != must {
			t.Errorf("%s is gone: whether that was noticed is wrong", name)
		}
	}
	for moment, files := range l.moments[:2] {
		for name, older := range files {
			now := maps.Clone(l.last())
			if strings.HasSuffix(name, snapshotSuffix) { // instead of the newer one
				for n := range now {
					if strings.HasSuffix(n, snapshotSuffix) {
						delete(now, n)
					}
				}
			}
			now[name] = older
			// Not to be known: the newest segment of a moment ago, and a vote taken
			// back in the same term.
			undetectable := moment == 1 && (name == varsFile || name == l.kinds(t)["newest segment"])
			in.try(fmt.Sprintf("%s as of moment %d", name, moment), now, undetectable)
		}
	}
	// Two files each of which could be an earlier one.
	now := maps.Clone(l.last())
	now[varsFile] = l.moments[0][varsFile]
	before := in.refused
	in.try("variables of an earlier term", now, false)
	testenv.True(t, in.refused != before, "variables of an earlier term than the log's entries were accepted")
	testenv.True(t, in.earlier != 0, "the undetectable cases were not tried")
}

// TestExchangedSegmentsAreDetected gives each segment the content of another.
func TestExchangedSegmentsAreDetected(t *testing.T) {
	l := live(t)
	in := &injector{t: t, life: l, dir: memoryDir(t)}
	for a := range l.last() {
		for b := range l.last() {
			if a != b && filepath.Ext(a) == segmentSuffix && filepath.Ext(b) == segmentSuffix {
				now := maps.Clone(l.last())
				now[a] = now[b]
				in.try(fmt.Sprintf("%s is a copy of %s", a, b), now, false)
			}
		}
	}
	testenv.False(t, in.harmless > 0, "%d exchanges went unnoticed", in.harmless)
}

// TestDamageWhileOpen changes files of an open directory: what is read is what
// was stored, or an error names the file; the process lives.
func TestDamageWhileOpen(t *testing.T) {
	l, r := live(t), randomOf(t)
	in := &injector{t: t, life: l, dir: memoryDir(t)}
	kinds := l.kinds(t)
	for _, kind := range []string{"first segment", "middle segment", "newest segment", "variables", "snapshot"} {
		name := kinds[kind]
		number, _ := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), segmentSuffix), 10, 64) // 0: no segment
		for harm, change := range harms {
			at := places(r, l.last()[name], number)
			place := slices.Sorted(maps.Keys(at))[r.IntN(len(at))]
			path := filepath.Join(in.dir, fmt.Sprintf("%s %s", kind, harm))
			l.last().write(t, path)
			d := testenv.Must(Open(injectOptions(path)))(t)
			b := change(r, bytes.Clone(l.last()[name]), nil, nil, at[place])
			testenv.NoError(t, os.WriteFile(filepath.Join(path, name), b, 0o600)) // truncates first
			if _, err := in.compare(d); err != nil {
				in.named(fmt.Sprintf("%s, %s, at byte %d (%s)", kind, harm, at[place], place), path, err)
			}
			if err := d.Vars.SetUint64([]byte("CurrentTerm"), 4); err != nil {
				in.named(kind+", written to", path, err)
			}
			if err := d.Close(); err != nil {
				in.named(kind+", closing", path, err)
			}
		}
	}
}

// TestTermBehindSnapshot puts back variables of an earlier term than the
// snapshot's.
func TestTermBehindSnapshot(t *testing.T) {
	path := filepath.Join(memoryDir(t), "store")
	d := mustOpen(t, path)
	old := readImage(t, path)[varsFile]
	testenv.NoError(t, errors.Join(d.Vars.SetUint64([]byte("CurrentTerm"), 3), writeSnapshot(d, 7, "state"), d.Close()))
	if got := binary.LittleEndian.Uint32(old[16:]); got != 0xED0CDAED { // bbolt's
		t.Fatalf("not a variables file: %x", got)
	}
	testenv.NoError(t, os.WriteFile(filepath.Join(path, varsFile), old, 0o600))
	var damage *DamageError
	if _, err := Open(options(path)); !errors.As(err, &damage) || damage.Path != filepath.Join(path, varsFile) {
		t.Error(err)
	}
}
