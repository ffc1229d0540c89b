// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestCountsEqualThoseOfAScan compares the counts of ranges, at each readable revision, with those that a look at each
// key gives: after writes, deletions, transactions, compactions, and a restore from a snapshot.
func TestCountsEqualThoseOfAScan(t *testing.T) {
	var counted, old, limited int
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		key := rapid.Map(rapid.IntRange(0, 60), func(n int) []byte { return fmt.Appendf(nil, "/%02d", n) })
		end := rapid.OneOf(key, rapid.Just([]byte{0}), rapid.Just([]byte("/~")), rapid.Just([]byte(nil)))
		write := func() Request {
			if rapid.IntRange(0, 3).Draw(t, "delete") > 0 {
				return &pb.PutRequest{Key: key.Draw(t, "key")}
			}
			r := &pb.DeleteRangeRequest{Key: key.Draw(t, "key")}
			if rapid.Bool().Draw(t, "range") {
				r.RangeEnd = end.Draw(t, "end")
			}
			return r
		}
		check := func(v *View) {
			r := &pb.RangeRequest{Key: key.Draw(t, "key"), RangeEnd: end.Draw(t, "end")}
			r.Limit = rapid.SampledFrom([]int64{0, 1, 5}).Draw(t, "limit")
			r.CountOnly = rapid.Bool().Draw(t, "count only")
			r.Revision = rapid.Int64Range(max(1, v.Compacted()), max(v.rev, v.Compacted())).Draw(t, "revision")
			var want int64
			v.Walk(r.Key, r.RangeEnd, r.Revision, func(*Version) bool { want++; return true })
			got := testenv.Must(v.Range(r))(t)
			kvs, more := want, false
			switch {
			case r.CountOnly:
				kvs = 0
			case r.Limit > 0 && want > r.Limit:
				kvs, more = r.Limit, true
				limited++
			}
			if got.Count != want || int64(len(got.Kvs)) != kvs || got.More != more {
				t.Fatalf("revision %d of %d, %v: count %d with %d keys, more: %v; want %d, %d, %v",
					r.Revision, v.rev, r, got.Count, len(got.Kvs), got.More, want, kvs, more)
			}
			counted++
			if r.Revision < v.rev {
				old++
			}
		}
		views := []*View{s.Freeze()}
		steps := rapid.IntRange(1, 30).Draw(t, "steps")
		for range steps {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				s.Apply(&pb.CompactionRequest{Revision: rapid.Int64Range(1, s.rev).Draw(t, "to")})
				views = nil // an older view may be asked for what is compacted: etcd's error, not a count
			case 1:
				var b bytes.Buffer
				testenv.Must(s.Freeze().Snapshot().WriteTo(&b))(t)
				restored := testenv.Must(Restore(&b))(t)
				s, views = restored, nil
			default:
				// Enough of them for full pages of turns, now and then.
				for range rapid.SampledFrom([]int{1, 1, 10, 700}).Draw(t, "writes") {
					s.Apply(write())
				}
			}
			views = append(views, s.Freeze())
			for _, v := range views[max(0, len(views)-3):] {
				check(v)
			}
		}
	})
	if counted < 100 || old < counted/10 || limited < counted/20 {
		t.Errorf("%d counts, %d of them of old revisions and %d beyond a limit: the test says little", counted, old,
			limited)
	}
}

// pods is a state with this many keys of 1 KB.
func pods(count int) *State {
	s := New()
	for i := range count {
		s.Apply(&pb.PutRequest{Key: fmt.Appendf(nil, "/registry/pods/namespace-%03d/pod-%06d-abcd", i%100, i), Value: make([]byte, 1000)})
	}
	return s
}

var allPods = pb.RangeRequest{Key: []byte("/registry/pods/"), RangeEnd: []byte("/registry/pods0")}

// BenchmarkPageOfList reads 500 of 100,000 keys, of now and of a revision after
// which there were many writes, and counts only.
func BenchmarkPageOfList(b *testing.B) {
	const count = 100_000
	s := pods(count)
	s.Apply(&pb.CompactionRequest{Revision: s.rev})
	begun := s.rev
	r := rand.New(rand.NewPCG(1, 1))
	for i := range count { // a third of them updates, and as many deletions as new keys
		name := func(n int) []byte { return fmt.Appendf(nil, "/registry/pods/namespace-%03d/pod-%06d-abcd", n%100, n) }
		switch i % 3 {
		case 0:
			s.Apply(&pb.PutRequest{Key: name(r.IntN(count / 2)), Value: make([]byte, 100)})
		case 1:
			s.Apply(&pb.PutRequest{Key: name(count + i), Value: make([]byte, 100)})
		default:
			s.Apply(&pb.DeleteRangeRequest{Key: name(count/2 + i/3)})
		}
	}
	v := s.Freeze()
	for name, change := range map[string]func(*pb.RangeRequest){
		"now":                 func(r *pb.RangeRequest) { r.Limit = 500 },
		"100,000 writes ago":  func(r *pb.RangeRequest) { r.Limit, r.Revision = 500, begun },
		"count, now":          func(r *pb.RangeRequest) { r.CountOnly = true },
		"count, 100,000 back": func(r *pb.RangeRequest) { r.CountOnly, r.Revision = true, begun },
	} {
		r := &pb.RangeRequest{Key: allPods.Key, RangeEnd: allPods.RangeEnd}
		change(r)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			used := cpuTime(b)
			for b.Loop() {
				if resp, err := v.Range(r); err != nil || r.Revision != 0 && resp.Count != count {
					b.Fatal(resp, err)
				}
			}
			b.ReportMetric(float64(cpuTime(b)-used)/float64(b.N), "cpu-ns/op") // on a machine that is busy otherwise
		})
	}
}

func cpuTime(b *testing.B) int64 {
	var u unix.Rusage
	testenv.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return u.Utime.Nano() + u.Stime.Nano()
}

// TestMemoryOfCounting: what counting needs is little beside the keys, and none
// of it keeps old values alive.
func TestMemoryOfCounting(t *testing.T) {
	const count, size = 2000, 10_000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := New()
	for range 2 {
		for i := range count {
			s.Apply(&pb.PutRequest{Key: fmt.Appendf(nil, "/%d", i), Value: make([]byte, size)})
			s.Freeze() // as after each entry; the tree shares arrays of its nodes otherwise
		}
	}
	for i := range count {
		s.Apply(&pb.PutRequest{Key: fmt.Appendf(nil, "/%d", i), Value: make([]byte, 1)})
		s.Freeze()
	}
	s.Apply(&pb.CompactionRequest{Revision: s.rev})
	if kept := int64(heap() - before); kept > count*500 {
		t.Errorf("%d bytes for each of %d keys without values", kept/count, count)
	}
	runtime.KeepAlive(s)
}
