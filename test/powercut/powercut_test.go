// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	diskSize = 384 << 20
	// bootTimeout bounds one boot, the cut included.
	bootTimeout = 3 * time.Minute
)

// cut says when the power goes: when something has happened in the guest for
// the count'th time and then the disk got some more requests.
type cut struct {
	name     string
	moment   string
	count    int // at most
	requests int // at most
	newDisk  bool
}

// cuts are in the order in which a short run takes them.
var cuts = []cut{
	{name: "first start", moment: "opening", requests: 80, newDisk: true},
	{name: "writes", moment: "acknowledged", count: 2000, requests: 10},
	{name: "start", moment: "opening", requests: 20},
	{name: "snapshot", moment: "snapshot", count: 1, requests: 80},
	{name: "new segment", moment: "segment", count: 2, requests: 12},
	{name: "term", moment: "vars", count: 2, requests: 4},
	{name: "log trimmed", moment: "snapshotted", count: 1, requests: 20},
	{name: "first writes", moment: "acknowledged", count: 20, requests: 4},
}

// environment is a number from the environment.
func environment(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: %v", name, text, err)
	}
	return n
}

// bench is what one test has: a machine, a disk, and what is known of it.
type bench struct {
	t       *testing.T
	machine *Machine
	random  *rand.Rand
	boots   int
	disks   int
	ledger  *Ledger
	started time.Time
	total   int // acknowledged writes on earlier disks
	lies    bool
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if why := Missing(); why != "" {
		t.Skip(why)
	}
	seed := environment(t, "CORACLE_POWERCUT_SEED", rand.Uint64()>>32)
	t.Logf("seed: CORACLE_POWERCUT_SEED=%d", seed)
	dir := workDir(t)
	b := &bench{t: t, random: rand.New(rand.NewPCG(seed, 0)), started: time.Now()}
	b.machine = &Machine{Dir: dir, Program: filepath.Join(dir, "guest"), Seed: int(seed)}
	b.run("go", "build", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", b.machine.Program, "./guest")
	if err := b.machine.prepare(); err != nil {
		t.Fatal(err)
	}
	return b
}

// workDir is in memory if there is room: a guest's memory is a file, and so is
// its disk. It stays if the test fails.
func workDir(t *testing.T) string {
	t.Helper()
	parent := ""
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err == nil && int64(st.Bavail)*st.Bsize > 2<<30 {
		parent = "/dev/shm"
	}
	dir, err := os.MkdirTemp(parent, "powercut")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the disk and the consoles are in %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (b *bench) run(name string, args ...string) {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

func (b *bench) image() string { return filepath.Join(b.machine.Dir, "disk") }

func (b *bench) newDisk() {
	b.t.Helper()
	if err := os.WriteFile(b.image(), nil, 0o600); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Truncate(b.image(), diskSize); err != nil {
		b.t.Fatal(err)
	}
	b.run("mkfs.ext4", "-q", "-F", "-b", strconv.Itoa(blockSize), "-J", "size=8", "-E", "lazy_itable_init=0,lazy_journal_init=0", b.image())
	if b.ledger != nil {
		b.total += b.ledger.Total
	}
	b.disks++
	b.ledger = NewLedger()
}

// boot runs the machine until the moment to cut its power, and settles its disk.
func (b *bench) boot(c cut, loss Loss) error {
	b.t.Helper()
	b.boots++
	start := time.Now()
	disk, err := openDisk(b.image())
	if err != nil {
		return err
	}
	disk.lies = b.lies
	count, requests := 1+b.random.IntN(max(1, c.count)), b.random.IntN(c.requests+1)
	h := &listener{ledger: b.ledger, boot: b.boots, moment: func(name string) {
		if name != c.moment {
			return
		}
		if count--; count == 0 {
			disk.CutAfter(requests)
		}
	}}
	cached, err := b.untilCut(disk, h, loss)
	if err != nil {
		return err
	}
	b.t.Logf("boot %d, cut at %s: %d writes acknowledged, %d requests in the disk's cache, %v; %.1f s",
		b.boots, c.name, h.acked, cached, loss, time.Since(start).Seconds())
	return nil
}

func (b *bench) untilCut(disk *Disk, h *listener, loss Loss) (cached int, err error) {
	// data=writeback lets ext4 promise less about data that was not synced.
	journal := []string{"data=ordered", "data=writeback"}[b.random.IntN(2)]
	ctx, cancel := context.WithTimeout(b.t.Context(), bootTimeout)
	defer cancel()
	machine, err := b.machine.Start(ctx, b.boots, disk, journal)
	if err != nil {
		return 0, err
	}
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		select {
		case <-disk.Off():
			_ = machine.kill()
		case <-machine.Gone():
		}
	}()
	err = machine.Lines(h.line)
	if err == nil && disk.powered() {
		err = fmt.Errorf("the machine went down by itself, or took longer than %v", bootTimeout)
	}
	err = errors.Join(err, machine.End())
	<-killed
	cached, settled := disk.Settle(b.random, loss)
	if err = errors.Join(err, settled); err != nil {
		console, _ := os.ReadFile(b.machine.Console(b.boots))
		return 0, fmt.Errorf("boot %d, after %d writes that were acknowledged in it: %w\n%s", b.boots, h.acked, err, tail(console))
	}
	return cached, nil
}

// tail is what a console says since the kernel was up.
func tail(console []byte) []byte {
	if _, after, found := bytes.Cut(console, []byte("as init process\n")); found {
		console = after
	}
	return console[max(0, len(console)-4000):]
}

// check boots once more, only to look.
func (b *bench) check() error {
	return b.boot(cut{name: "the end", moment: "writing"}, Loss{Kept: 1})
}

// fsck checks a copy of the disk's file system, after its journal was replayed.
func (b *bench) fsck() error {
	duplicate := b.image() + ".fsck"
	b.run("cp", "--sparse=always", b.image(), duplicate)
	out, err := exec.CommandContext(b.t.Context(), "e2fsck", "-f", "-p", duplicate).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 { // orphans that a mount would remove
		err = nil
	}
	if err != nil {
		return fmt.Errorf("e2fsck: %w\n%s", err, out)
	}
	return nil
}

// TestPowerCuts cuts the power CORACLE_POWERCUTS times, three if that is not
// set, and checks the store after each.
func TestPowerCuts(t *testing.T) {
	b := newBench(t)
	n := int(environment(t, "CORACLE_POWERCUTS", 3))
	for i := range n {
		c := cuts[i%len(cuts)]
		if i >= len(cuts) {
			c = cuts[b.random.IntN(len(cuts))]
		}
		if c.newDisk {
			if i > 0 {
				if err := b.check(); err != nil {
					t.Fatal(err)
				}
			}
			b.newDisk()
		}
		if err := b.boot(c, someLoss(b.random)); err != nil {
			t.Fatal(err)
		}
		if err := b.fsck(); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.check(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d cuts on %d disks: %d acknowledged writes were all there, %d that were not acknowledged too; %.1f s",
		n, b.disks, b.total+b.ledger.Total, b.ledger.Unknown, time.Since(b.started).Seconds())
}

// TestLyingDisk shows that the test can fail: a disk that says it flushed and
// did not loses what was acknowledged.
func TestLyingDisk(t *testing.T) {
	b := newBench(t)
	b.lies = true
	b.newDisk()
	if err := b.boot(cut{name: "writes", moment: "acknowledged", count: 100}, Loss{}); err != nil {
		t.Fatal(err)
	}
	b.lies = false
	err := b.check()
	if err == nil {
		t.Fatal("a disk that forgot everything went unnoticed")
	}
	t.Logf("as it should be: %v", err)
}
