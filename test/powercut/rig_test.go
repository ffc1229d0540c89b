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
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

const (
	// diskSize has room for what is written while a server is awaited that does not come: the log is kept for it.
	diskSize = 1 << 30
	// patience is how long anything may take that has to happen.
	patience = 3 * time.Minute
)

// rig is what one test has: machines with their disks, and what is known of
// what they hold.
type rig struct {
	t       *testing.T
	random  *rand.Rand
	servers []*server
	network *Switch
	boots   int
	cuts    int
	started time.Time

	mu     sync.Mutex // the servers' lines come at the same time
	ledger *Ledger
	total  int // acknowledged writes on earlier disks
}

// server is a machine and its disk. A boot is between start and settle.
type server struct {
	machine *Machine
	image   string

	cut    cut
	disk   *Disk
	boot   *Boot
	lines  *listener
	ready  chan struct{} // closed when everything was found in order, or is idle
	acks   chan struct{} // capacity 1: there are more
	done   chan struct{} // closed when nothing is left of the machine
	err    error         // readable then
	began  time.Time
	number int
}

func newRig(t *testing.T, servers int) *rig {
	t.Helper()
	uml.Require(t, "mkfs.ext4", "e2fsck")
	seed := environment(t, "CORACLE_POWERCUT_SEED", testenv.Seed(t)>>32)
	t.Logf("seed: CORACLE_POWERCUT_SEED=%d", seed)
	dir := workDir(t)
	r := &rig{t: t, random: rand.New(rand.NewPCG(seed, 0)), started: time.Now()}
	program := filepath.Join(dir, "guest")
	r.run("go", "build", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", program, "./guest")
	if servers > 1 {
		r.network = &Switch{}
		t.Cleanup(r.network.Wait)
	}
	for i := range servers {
		s := &server{machine: &Machine{
			Dir: filepath.Join(dir, fmt.Sprintf("server%d", i+1)), Program: program, Seed: int(seed),
			Server: i + 1, Servers: servers, Network: r.network,
		}}
		testenv.NoError(t, s.machine.prepare())
		s.image = filepath.Join(s.machine.Dir, "disk")
		r.servers = append(r.servers, s)
	}
	t.Cleanup(func() {
		for _, s := range r.servers {
			if s.boot != nil { // a test that failed
				s.disk.CutAfter(0)
				<-s.done
			}
		}
	})
	return r
}

// environment is a number from the environment.
func environment(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	testenv.NoError(t, err, "%s=%q", name, text)
	return n
}

// workDir is in memory if there is room: a guest's memory is a file, which it
// must be allowed to execute, and so is its disk. It stays if the test fails.
func workDir(t *testing.T) string {
	t.Helper()
	parent := ""
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err == nil && int64(st.Bavail)*st.Bsize > 4<<30 && st.Flags&unix.ST_NOEXEC == 0 {
		parent = "/dev/shm"
	}
	dir := testenv.Must(os.MkdirTemp(parent, "powercut"))(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the disks and the consoles are in %s", dir)
			return
		}
		testenv.Check(t, os.RemoveAll(dir))
	})
	return dir
}

func (r *rig) run(name string, args ...string) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// newDisks gives every machine an empty disk.
func (r *rig) newDisks() {
	r.t.Helper()
	for _, s := range r.servers {
		testenv.NoError(r.t, uml.MakeDisk(s.image, diskSize, "-b", strconv.Itoa(blockSize), "-J", "size=8",
			"-E", "lazy_itable_init=0,lazy_journal_init=0"))
	}
	if r.ledger != nil {
		r.total += r.ledger.Total
	}
	r.ledger = NewLedger()
}

// start boots a machine. Its power goes as the cut says.
func (r *rig) start(s *server, c cut, idle bool) {
	r.t.Helper()
	r.boots++
	disk, err := OpenDisk(s.image)
	testenv.NoError(r.t, err)
	disk.lies = c.lies
	s.cut, s.disk, s.number, s.began = c, disk, r.boots, time.Now()
	s.ready, s.acks, s.done, s.err = make(chan struct{}), make(chan struct{}, 1), make(chan struct{}), nil
	count, requests := 1+r.random.IntN(max(1, c.count)), r.random.IntN(c.requests+1)+c.exactly
	s.lines = &listener{ledger: r.ledger, boot: r.boots, moment: func(name string) {
		switch name {
		case "checked", "idle":
			close(s.ready)
		case "acknowledged":
			select {
			case s.acks <- struct{}{}:
			default:
			}
		}
		if name == c.moment {
			if count--; count == 0 {
				disk.CutAfter(requests)
			}
		}
	}}
	// data=writeback lets ext4 promise less about data that was not synced.
	o := BootOptions{Number: r.boots, Journal: []string{"data=ordered", "data=writeback"}[r.random.IntN(2)], Idle: idle}
	if s.boot, err = s.machine.Start(r.t.Context(), o, disk); err != nil {
		r.t.Fatal(r.explain(s, err))
	}
	go r.follow(s)
}

// follow reads what the guest has to say until the power is off.
func (r *rig) follow(s *server) {
	defer close(s.done)
	go func() {
		select {
		case <-s.disk.Off():
			_ = s.boot.cmd.Cancel()
		case <-s.boot.Gone():
		}
	}()
	err := s.boot.Lines(func(line string) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		return s.lines.line(line)
	})
	if err == nil && s.disk.powered() {
		err = errors.New("the machine went down by itself")
	}
	s.err = errors.Join(err, s.boot.End())
}

// settle waits for the end of a boot, whose cut is due, and decides what is
// left on the disk.
func (r *rig) settle(s *server, loss Loss) {
	r.t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		s.disk.CutAfter(0)
		<-s.done
		s.err = errors.Join(s.err, fmt.Errorf("what the cut waited for did not happen within %v", patience))
	}
	s.boot = nil
	cached, err := s.disk.Settle(r.random, loss)
	if err = errors.Join(s.err, err); err != nil {
		r.t.Fatal(r.explain(s, err))
	}
	r.cuts++
	r.t.Logf("server %d, boot %d, cut at %s: %d writes acknowledged, %d in doubt, %d requests in the disk's cache, %v; %.1f s",
		s.machine.Server, s.number, s.cut.name, s.lines.acked, len(s.lines.unknown), cached, loss, time.Since(s.began).Seconds())
	for _, line := range s.lines.unknown {
		r.t.Logf("  in doubt: %s", line)
	}
	testenv.NoError(r.t, r.fsck(s))
}

// explain adds the end of the console to an error.
func (r *rig) explain(s *server, err error) error {
	console, _ := os.ReadFile(s.machine.Console(s.number))
	if _, after, found := bytes.Cut(console, []byte("as init process\n")); found {
		console = after
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Errorf("server %d, boot %d, after %d lines and %d writes that were acknowledged in it: %w\n%s",
		s.machine.Server, s.number, s.lines.lines, s.lines.acked, err, console[max(0, len(console)-16000):])
}

// fsck checks a copy of a disk's file system, after its journal was replayed.
func (r *rig) fsck(s *server) error {
	duplicate := s.image + ".fsck"
	r.run("cp", "--sparse=always", s.image, duplicate)
	out, err := exec.CommandContext(r.t.Context(), "e2fsck", "-f", "-p", duplicate).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 { // orphans that a mount would remove
		err = nil
	}
	if err != nil {
		return fmt.Errorf("e2fsck: %w\n%s", err, out)
	}
	return os.Remove(duplicate)
}

// awaitReady returns when the servers have said what they hold, and it is what
// they should. Those whose power went count as ready.
func (r *rig) awaitReady(within time.Duration, servers ...*server) bool {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), within)
	defer cancel()
	for _, s := range servers {
		select {
		case <-s.ready:
		case <-s.done:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// sendGo makes the servers write.
func (r *rig) sendGo(servers ...*server) {
	r.t.Helper()
	for _, s := range servers {
		if err := s.boot.Go(); err != nil && s.disk.powered() {
			r.t.Fatal(err)
		}
	}
}

// check boots everything once more, only to look, and says what is wrong.
func (r *rig) check() error {
	r.t.Helper()
	for _, s := range r.servers {
		r.start(s, cut{name: "the end"}, false)
	}
	var errs []error
	if !r.awaitReady(patience, r.servers...) {
		for _, s := range r.servers {
			errs = append(errs, r.explain(s, errNotReady))
		}
	}
	for _, s := range r.servers {
		s.disk.CutAfter(0)
		<-s.done
		if s.err != nil {
			errs = append(errs, r.explain(s, s.err))
		}
		_, err := s.disk.Settle(r.random, Loss{Kept: 1})
		s.boot, errs = nil, append(errs, err)
	}
	return errors.Join(errs...)
}

func (r *rig) summary() {
	r.t.Logf("%d cuts: %d acknowledged writes were all there; %.1f s", r.cuts, r.total+r.ledger.Total, time.Since(r.started).Seconds())
}
