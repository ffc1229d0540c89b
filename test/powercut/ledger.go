// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	"github.com/coracle-k8s/coracle/test/powercut/report"
)

// A Ledger knows what the clients of one store were answered, and judges what is
// found in it after a cut. Every client has one write under way at most, so of
// each client's writes all but the last one sent must be there at the revision
// that was acknowledged; the last may be there if it was not acknowledged; and
// nothing else.
type Ledger struct {
	// As it was found last time: the keys, and every version since a revision.
	revision int64
	live     map[string]report.Version
	since    int64
	base     map[string]report.Version
	history  []report.Version // in order
	leases   map[int64]bool
	compact  int64

	// Since then.
	pending      map[int]*report.Write // by client
	acknowledged map[int64]*report.Write
	done         []*report.Write // acknowledged, or found to have happened
	newest       int64           // acknowledged revision

	Total, Unknown int // writes that were acknowledged, and that were not but are there
}

// NewLedger is that of an empty store.
func NewLedger() *Ledger {
	l := &Ledger{
		revision: 1, live: map[string]report.Version{}, base: map[string]report.Version{}, leases: map[int64]bool{},
	}
	l.reset()
	return l
}

func (l *Ledger) reset() {
	l.pending, l.acknowledged, l.done = map[int]*report.Write{}, map[int64]*report.Write{}, nil
}

// Sent notes a write that may be done from now on.
func (l *Ledger) Sent(w *report.Write) error {
	if p := l.pending[w.Client]; p != nil {
		return fmt.Errorf("client %d sends %s and never heard of %s", w.Client, w.Name(), p.Name())
	}
	l.pending[w.Client] = w
	return nil
}

// Acknowledged notes that a client's write is done.
func (l *Ledger) Acknowledged(client, n int, revision int64) error {
	w := l.pending[client]
	if w == nil || w.N != n {
		return fmt.Errorf("write %d of client %d was acknowledged and not sent", n, client)
	}
	delete(l.pending, client)
	l.Total++
	l.newest = max(l.newest, revision)
	l.done = append(l.done, w)
	if len(w.Puts)+len(w.Deletes) == 0 {
		return nil // no revision of its own
	}
	if other := l.acknowledged[revision]; other != nil || revision <= l.revision {
		return fmt.Errorf("%s was acknowledged with revision %d, which is not new", w.Name(), revision)
	}
	l.acknowledged[revision] = w
	return nil
}

// Found is what a store holds.
type Found struct {
	Revision, Compacted int64
	Live, Base          []report.Version // at Revision and at Compacted
	Events              []report.Version // between them
	Leases              map[int64][]string
}

// Judge compares the store with the ledger and makes what was found the new
// start. An error says what promise was broken.
func (l *Ledger) Judge(f *Found) error {
	if f.Revision < l.newest || f.Revision < l.revision {
		return fmt.Errorf("the store is at revision %d; %d was acknowledged", f.Revision, max(l.newest, l.revision))
	}
	slices.SortFunc(f.Events, order)
	for revision := l.revision + 1; revision <= f.Revision; revision++ {
		w := l.acknowledged[revision]
		if w == nil {
			if w = l.claim(f, revision); w == nil {
				return fmt.Errorf("revision %d was not acknowledged, and no write that was under way explains it: %v", revision, at(f.Events, revision))
			}
			l.Unknown++
		}
		l.apply(w, revision)
	}
	l.revision = f.Revision
	if err := l.judgeCompaction(f); err != nil {
		return err
	}
	l.moveBase(f.Compacted)
	err := errors.Join(
		l.judgeLeases(f),
		compare("key", slices.Collect(maps.Values(l.live)), f.Live),
		compare("event", l.history, f.Events),
	)
	if f.Compacted > 0 {
		err = errors.Join(err, compare("key at the compaction revision", slices.Collect(maps.Values(l.base)), f.Base))
	}
	l.reset()
	return err
}

func at(events []report.Version, revision int64) []report.Version {
	i, _ := slices.BinarySearchFunc(events, revision, func(v report.Version, r int64) int { return cmp.Compare(v.Revision, r) })
	j := i
	for j < len(events) && events[j].Revision == revision {
		j++
	}
	return events[i:j]
}

// claim returns the write under way that made a revision, and takes it from
// those under way.
func (l *Ledger) claim(f *Found, revision int64) *report.Write {
	events := at(f.Events, revision)
	if len(events) == 0 {
		return nil
	}
	for client, w := range l.pending {
		if len(events) == len(w.Puts)+len(w.Deletes) && explains(w, events) {
			delete(l.pending, client)
			l.done = append(l.done, w)
			return w
		}
	}
	return nil
}

func explains(w *report.Write, events []report.Version) bool {
	for _, e := range events {
		known := e.Deleted && slices.Contains(w.Deletes, e.Key) ||
			!e.Deleted && slices.ContainsFunc(w.Puts, func(p report.Put) bool { return p.Key == e.Key })
		if !known {
			return false
		}
	}
	return true
}

// apply does to the ledger what a write does to a store.
func (l *Ledger) apply(w *report.Write, revision int64) {
	from := len(l.history)
	for _, p := range w.Puts {
		was := l.live[p.Key]
		v := report.Version{
			Revision: revision, Key: p.Key, Create: was.Create, Count: was.Count + 1, Lease: p.Lease,
			Writer: w.Name(), Sum: crc32.ChecksumIEEE(w.Value(p.Key)),
		}
		if was.Count == 0 {
			v.Create = revision
		}
		l.live[p.Key] = v
		l.history = append(l.history, v)
	}
	for _, key := range w.Deletes {
		delete(l.live, key)
		l.history = append(l.history, report.Version{Revision: revision, Key: key, Deleted: true})
	}
	slices.SortFunc(l.history[from:], order)
}

// judgeCompaction accepts the newest compaction that was acknowledged, or one
// that was under way.
func (l *Ledger) judgeCompaction(f *Found) error {
	for _, w := range l.done {
		l.compact = max(l.compact, w.Compact)
	}
	if f.Compacted != l.compact {
		for _, w := range l.pending {
			if w.Compact != 0 && f.Compacted == w.Compact {
				l.compact = w.Compact
			}
		}
	}
	if f.Compacted != l.compact {
		return fmt.Errorf("the store is compacted to revision %d; %d was acknowledged", f.Compacted, l.compact)
	}
	return nil
}

// moveBase advances the start of the history.
func (l *Ledger) moveBase(to int64) {
	n := 0
	for ; n < len(l.history) && l.history[n].Revision <= to; n++ {
		if v := l.history[n]; v.Deleted {
			delete(l.base, v.Key)
		} else {
			l.base[v.Key] = v
		}
	}
	l.history, l.since = slices.Clone(l.history[n:]), to
}

func (l *Ledger) judgeLeases(f *Found) error {
	for _, w := range l.done {
		if w.Grant != 0 {
			l.leases[w.Grant] = true
		}
	}
	for _, w := range l.done { // no lease is granted twice
		delete(l.leases, w.Revoke)
	}
	for _, w := range l.pending { // they may have happened
		if _, there := f.Leases[w.Grant]; there && w.Grant != 0 {
			l.leases[w.Grant] = true
		}
		if _, there := f.Leases[w.Revoke]; !there && len(w.Deletes) == 0 {
			delete(l.leases, w.Revoke)
		}
	}
	var errs []error
	for id := range l.leases {
		if _, there := f.Leases[id]; !there {
			errs = append(errs, fmt.Errorf("lease %d is gone", id))
		}
	}
	for id, keys := range f.Leases {
		if !l.leases[id] {
			errs = append(errs, fmt.Errorf("lease %d is there and was revoked, or never granted", id))
		}
		var want []string
		for key, v := range l.live {
			if v.Lease == id {
				want = append(want, key)
			}
		}
		slices.Sort(keys)
		if slices.Sort(want); !slices.Equal(keys, want) {
			errs = append(errs, fmt.Errorf("lease %d has the keys %v, want %v", id, keys, want))
		}
	}
	return errors.Join(errs...)
}

func order(a, b report.Version) int {
	return cmp.Or(cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.Key, b.Key))
}

// compare names the first few differences.
func compare(what string, want, got []report.Version) error {
	slices.SortFunc(want, order)
	slices.SortFunc(got, order)
	var errs []error
	for len(want)+len(got) > 0 && len(errs) < 10 {
		switch {
		case len(got) == 0 || len(want) > 0 && order(want[0], got[0]) < 0:
			errs = append(errs, fmt.Errorf("%s is missing: %v", what, want[0]))
			want = want[1:]
		case len(want) == 0 || order(want[0], got[0]) > 0:
			errs = append(errs, fmt.Errorf("%s should not be there: %v", what, got[0]))
			got = got[1:]
		default:
			if want[0] != got[0] {
				errs = append(errs, fmt.Errorf("%s is %v, want %v", what, got[0], want[0]))
			}
			want, got = want[1:], got[1:]
		}
	}
	return errors.Join(errs...)
}
