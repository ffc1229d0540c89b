// SPDX-License-Identifier: Apache-2.0

//go:build bench

package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	raftwal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// This file is the measurement of docs/adr/0010: three logs under the same
// load, and what they make of a flipped bit.
//
//	CORACLE_COMPARE_DIR=DIR go test -tags bench -run TestCompare -v ./raftstore/disk
//
// DIR lies on the device to measure; default is the temporary directory. Where
// a loop device can be mounted, bytes and flushes are counted on one, whose
// file lies in DIR, so that nobody else's are among them.

type closableLog interface {
	raft.LogStore
	io.Closer
}

// ourLog closes its directory.
type ourLog struct {
	*Log
	dir *Dir
}

func (l ourLog) Close() error { return l.dir.Close() }

// walLog closes what raft-wal leaves open.
type walLog struct {
	*raftwal.WAL
	meta *metadb.BoltMetaDB
}

func (l walLog) Close() error { return errors.Join(l.WAL.Close(), l.meta.Close()) }

// candidates open a log in an existing directory.
var candidates = []struct {
	name string
	open func(dir string, small bool) (closableLog, error)
}{
	{"raft-boltdb 2.3.1", func(dir string, _ bool) (closableLog, error) {
		return raftboltdb.New(raftboltdb.Options{
			Path:        filepath.Join(dir, "log.db"),
			BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
		})
	}},
	{"raft-wal 0.4.0", func(dir string, small bool) (closableLog, error) {
		meta, size := &metadb.BoltMetaDB{}, raftwal.DefaultSegmentSize
		if small {
			size = 64 << 10
		}
		log, err := raftwal.Open(dir, raftwal.WithMetaStore(meta), raftwal.WithSegmentSize(size))
		if err != nil {
			return nil, errors.Join(err, meta.Close())
		}
		return walLog{log, meta}, nil
	}},
	{"disk.Log", func(dir string, small bool) (closableLog, error) {
		o := options(dir)
		if !small {
			o.SegmentSize, o.Reserve = 0, 0 // as in production
		}
		d, err := Open(o)
		if err != nil {
			return nil, err
		}
		return ourLog{d.Log, d}, nil
	}},
}

const compareEntry = 1100 // bytes: a put of 1 KB

func compareBatch(next uint64, n int) []*raft.Log {
	batch := make([]*raft.Log, n)
	for i := range batch {
		data := make([]byte, compareEntry)
		for j := range data {
			data[j] = byte(rand.Uint32())
		}
		batch[i] = &raft.Log{Index: next + uint64(i), Term: 1, Data: data, AppendedAt: time.Now()}
	}
	return batch
}

func compareDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv("CORACLE_COMPARE_DIR"), "compare")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestCompareLatency(t *testing.T) {
	const rounds, each = 3, 1200 * time.Millisecond
	times := map[string][]time.Duration{}
	var flushes []time.Duration
	root := compareDir(t)
	for round := range rounds {
		flushes = append(flushes, probe(t, root)...)
		for _, size := range []int{1, 16, 128} {
			for _, c := range candidates {
				dir := filepath.Join(root, fmt.Sprint(round, size, c.name))
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				log, err := c.open(dir, false)
				if err != nil {
					t.Fatal(err)
				}
				key := fmt.Sprintf("%-18s %3d", c.name, size)
				next := uint64(1)
				for until := time.Now().Add(each); time.Now().Before(until); next += uint64(size) {
					batch := compareBatch(next, size)
					start := time.Now()
					if err := log.StoreLogs(batch); err != nil {
						t.Fatal(err)
					}
					times[key] = append(times[key], time.Since(start))
				}
				if err := errors.Join(log.Close(), os.RemoveAll(dir)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	p50, p99 := quantiles(flushes)
	t.Logf("the device's own fdatasync of 4 KiB in an allocated file: p50 %v, p99 %v; load %s", p50, p99, load())
	for _, size := range []int{1, 16, 128} {
		for _, c := range candidates {
			key := fmt.Sprintf("%-18s %3d", c.name, size)
			p50, p99 := quantiles(times[key])
			t.Logf("%s entries an append: p50 %v p99 %v (%d appends)", key, p50, p99, len(times[key]))
		}
	}
}

func quantiles(d []time.Duration) (p50, p99 time.Duration) {
	slices.Sort(d)
	return d[len(d)/2].Round(time.Microsecond), d[len(d)*99/100].Round(time.Microsecond)
}

// probe measures what a flush alone costs.
func probe(t *testing.T, dir string) (all []time.Duration) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(allocate(f, 4<<20), f.Sync()); err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte("x"), 4096)
	for i := range int64(200) {
		start := time.Now()
		if _, err := f.WriteAt(block, i*4096); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			t.Fatal(err)
		}
		all = append(all, time.Since(start))
	}
	return all
}

func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return fmt.Sprintf("%.14s on %d cores", text, runtime.NumCPU())
}

// loopDevice mounts a file system of its own and returns the name under which
// the kernel counts what is written to it.
func loopDevice(t *testing.T, root string) (dir, device string) {
	t.Helper()
	file, dir := filepath.Join(root, "image"), filepath.Join(root, "mnt")
	run := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			testenv.Missing(t, testenv.LoopDevice, "%s: %v: %s", name, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<30)); err != nil {
		t.Fatal(err)
	}
	run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", file)
	path := run("losetup", "--find", "--show", file)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", path).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", path, err, out)
		}
	})
	run("mount", path, dir)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir, filepath.Base(path)
}

// written reads a device's bytes and flushes from /proc/diskstats.
func written(t *testing.T, device string) (bytes, flushes int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 19 && f[2] == device {
			sectors, err1 := strconv.ParseInt(f[9], 10, 64)
			flushes, err2 := strconv.ParseInt(f[18], 10, 64)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			return sectors * sector, flushes
		}
	}
	t.Fatalf("no device %s", device)
	return 0, 0
}

func TestCompareWrites(t *testing.T) {
	dir, device := loopDevice(t, compareDir(t))
	for _, size := range []int{1, 16, 128} {
		for _, c := range candidates {
			sub := filepath.Join(dir, fmt.Sprint(size, c.name))
			if err := os.Mkdir(sub, 0o700); err != nil {
				t.Fatal(err)
			}
			log, err := c.open(sub, false)
			if err != nil {
				t.Fatal(err)
			}
			const warm, appends = 20, 300
			next := uint64(1)
			var bytes, flushes int64
			for i := range warm + appends {
				if i == warm {
					unix.Sync()
					bytes, flushes = written(t, device)
				}
				if err := log.StoreLogs(compareBatch(next, size)); err != nil {
					t.Fatal(err)
				}
				next += uint64(size)
			}
			b, f := written(t, device)
			t.Logf("%-18s %3d entries an append: %.0f bytes to the device per entry, %.2f flushes per append",
				c.name, size, float64(b-bytes)/appends/float64(size), float64(f-flushes)/appends)
			if err := errors.Join(log.Close(), os.RemoveAll(sub)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCompareRecovery(t *testing.T) {
	const entries, size = 100_000, 1000
	for _, c := range candidates {
		dir := compareDir(t)
		log, err := c.open(dir, false)
		if err != nil {
			t.Fatal(err)
		}
		if l, ok := log.(ourLog); ok { // as raft does
			if err := l.dir.Vars.SetUint64([]byte("CurrentTerm"), 1); err != nil {
				t.Fatal(err)
			}
		}
		for next := uint64(1); next <= entries; next += size {
			if err := log.StoreLogs(compareBatch(next, size)); err != nil {
				t.Fatal(err)
			}
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		var took []time.Duration
		for range 3 {
			start := time.Now()
			if log, err = c.open(dir, false); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(start))
			if last, err := log.LastIndex(); err != nil || last != entries {
				t.Fatal(last, err)
			}
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%-18s with %d entries opens in %v (load %s)", c.name, entries, took, load())
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCompareDamage flips one bit of an acknowledged entry, in each of its bytes
// and of the 64 before them in turn, and says what each log makes of it.
func TestCompareDamage(t *testing.T) {
	const entries, size, before = 100, 100, 64
	marker := func(i uint64) []byte { return fmt.Appendf(nil, "entry %06d %s", i, strings.Repeat("x", size-13)) }
	for _, victim := range []uint64{50, 100} {
		for _, c := range candidates {
			dir := filepath.Join(memoryDir(t), "log")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			log, err := c.open(dir, true)
			if err != nil {
				t.Fatal(err)
			}
			for i := uint64(1); i <= entries; i++ {
				if err := log.StoreLog(&raft.Log{Index: i, Term: 1, Data: marker(i)}); err != nil {
					t.Fatal(err)
				}
			}
			if l, ok := log.(ourLog); ok {
				if err := l.dir.Vars.SetUint64([]byte("CurrentTerm"), 1); err != nil {
					t.Fatal(err)
				}
			}
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			image := readImage(t, dir)
			name, at := image.find(t, victim, marker(victim))
			verdicts := map[string]int{}
			for i := -before; i < size; i += 2 {
				image[name][at+i] ^= 4
				// A directory of its own for each: one that panicked stays locked.
				copied := memoryDir(t)
				image.write(t, copied)
				image[name][at+i] ^= 4
				verdicts[verdict(func() (closableLog, error) { return c.open(copied, true) }, entries, marker)]++
			}
			t.Logf("%-18s a bit of entry %3d of %d: %v", c.name, victim, entries, verdicts)
		}
	}
}

// find returns the file and offset of an entry's data. Ours is stored combined
// with other numbers.
func (i image) find(t *testing.T, index uint64, data []byte) (name string, at int) {
	t.Helper()
	masked := bytes.Clone(data)
	mask(masked, index)
	for name, b := range i {
		for _, want := range [][]byte{data, masked} {
			if at := bytes.LastIndex(b, want); at >= 0 {
				return name, at
			}
		}
	}
	t.Fatalf("entry %d is nowhere", index)
	return "", 0
}

func verdict(open func() (closableLog, error), entries uint64, want func(uint64) []byte) (result string) {
	defer func() {
		if p := recover(); p != nil {
			result = "panic"
		}
	}()
	log, err := open()
	if err != nil {
		return "refused at start"
	}
	defer log.Close()
	last, err := log.LastIndex()
	if err != nil {
		return err.Error()
	}
	for i := uint64(1); i <= last; i++ {
		var e raft.Log
		if err := log.GetLog(i, &e); err != nil {
			return "opened; reading fails"
		}
		if !bytes.Equal(e.Data, want(i)) {
			return "opened; another content is served"
		}
	}
	if last < entries {
		return fmt.Sprintf("opened; the last %d entries are gone", entries-last)
	}
	return "opened; everything is there"
}
