// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"fmt"
	"hash/crc32"
	"reflect"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/powercut/report"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// A small history: client 1 puts a, client 2 is granted lease 7 and puts b with
// it, client 1 deletes a; then client 1 sends a transaction and client 2 a
// revocation, of which nothing is heard.
var smallHistory = []string{
	"s 1 1 +a@0", "a 1 1 2", "s 2 1 g7", "a 2 1 2", "s 2 2 +b@7", "a 2 2 3", "s 1 2 -a", "a 1 2 4",
	"s 1 3 +a@0 +c@0", "s 2 3 -b r7",
}

func version(revision int64, key string, create, count, lease int64, writer string) report.Version {
	var w report.Write
	if _, err := fmt.Sscanf(writer, "%d.%d.%d", &w.Boot, &w.Client, &w.N); err != nil {
		panic(err)
	}
	return report.Version{
		Revision: revision, Key: key, Create: create, Count: count, Lease: lease, Writer: writer,
		Sum: crc32.ChecksumIEEE(w.Value(key)),
	}
}

// smallStore is a store in which only what was acknowledged happened.
func smallStore() *Found {
	a, b := version(2, "a", 2, 1, 0, "1.1.1"), version(3, "b", 3, 1, 7, "1.2.2")
	return &Found{
		Revision: 4, Live: []report.Version{b}, Leases: map[int64][]string{7: {"b"}},
		Events: []report.Version{a, b, {Revision: 4, Key: "a", Deleted: true}},
	}
}

func TestLedgerFindsLostWrites(t *testing.T) {
	transaction := func(f *Found) {
		a, c := version(5, "a", 5, 1, 0, "1.1.3"), version(5, "c", 5, 1, 0, "1.1.3")
		f.Revision, f.Live, f.Events = 5, append(f.Live, a, c), append(f.Events, a, c)
	}
	for _, test := range []struct {
		name   string
		change func(f *Found)
		want   string // in the error
	}{
		{"nothing of what is open", func(*Found) {}, ""},
		{"what is open happened", func(f *Found) {
			transaction(f)
			f.Revision, f.Live, f.Leases = 6, f.Live[1:], map[int64][]string{}
			f.Events = append(f.Events, report.Version{Revision: 6, Key: "b", Deleted: true})
		}, ""},
		{"lost", func(f *Found) { f.Revision, f.Events = 3, f.Events[:2] }, "4 was acknowledged"},
		{"lost in the middle", func(f *Found) { f.Events = f.Events[1:] }, "event is missing: 2 +a"},
		{"older", func(f *Found) { f.Live = nil }, "key is missing: 3 +b"},
		{"undeleted", func(f *Found) { f.Live = append(f.Live, f.Events[0]) }, "key should not be there: 2 +a"},
		{"another value", func(f *Found) { f.Live[0].Sum++ }, "key is 3 +b"},
		{"half a transaction", func(f *Found) {
			transaction(f)
			f.Live, f.Events = f.Live[:2], f.Events[:4]
		}, "no write that was under way explains it"},
		{"the same twice", func(f *Found) {
			transaction(f)
			f.Revision, f.Events = 6, append(f.Events, version(6, "a", 5, 2, 0, "1.1.3"), version(6, "c", 5, 2, 0, "1.1.3"))
		}, "revision 6 was not acknowledged"},
		{"no client's", func(f *Found) { f.Revision = 5 }, "revision 5 was not acknowledged"},
		{"lost lease", func(f *Found) { f.Leases = nil }, "lease 7 is gone"},
		{"unknown lease", func(f *Found) { f.Leases[8] = nil }, "lease 8 is there"},
		{"loose lease", func(f *Found) { f.Leases[7] = nil }, "lease 7 has the keys"},
		{"compacted", func(f *Found) { f.Compacted, f.Events = 2, f.Events[1:] }, "compacted to revision 2"},
	} {
		h := &listener{ledger: NewLedger(), boot: 1, moment: func(string) {}}
		for _, line := range smallHistory {
			testenv.NoError(t, h.line(line))
		}
		f := smallStore()
		test.change(f)
		err := h.ledger.Judge(f)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func TestReportLinesAreParsedBack(t *testing.T) {
	w := &report.Write{
		Boot: 3, Client: 4, N: 5, Puts: []report.Put{{Key: "4/1"}, {Key: "4/2", Lease: 9}}, Deletes: []string{"4/3"},
		Grant: 1, Revoke: 2, Compact: 3,
	}
	got, err := report.ParseSent(3, strings.TrimPrefix(w.Sent(), "s "))
	testenv.False(t, err != nil || !reflect.DeepEqual(got, w), "%v, %v, want %v", got, err, w)
	for _, v := range []report.Version{version(8, "4/1", 6, 3, 9, "3.4.5"), {Revision: 8, Key: "4/1", Deleted: true}} {
		if got, err := report.ParseVersion(v.String()); err != nil || got != v {
			t.Errorf("%v, %v, want %v", got, err, v)
		}
	}
	if got := report.Writer(w.Value("4/1")); got != "3.4.5" {
		t.Errorf("the value names %q as its writer", got)
	}
}
