//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// fails makes calls fail from a step on, or at once for "". It returns what ends that.
func (r *powered) fails(s scenario, at string, fails func(call string) error) (mend func()) {
	name := stepper(s.current, s.other)
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	reached := at == ""
	r.disk.before = func(call string, _ uint32) error {
		if name(call) == at {
			reached = true
		}
		if !reached {
			return nil
		}
		return fails(call)
	}
	return func() {
		r.disk.mu.Lock()
		defer r.disk.mu.Unlock()
		r.disk.before = nil
	}
}

// grows says whether a call takes room.
func grows(call string) bool {
	call, _, _ = strings.Cut(call, " ")
	return call == "create" || call == "write" || call == "mkdir" || call == "symlink"
}

// TestFullDisk: the disk is full from a write of an upgrade on, for each of them. The version before runs, the command
// says why, and with some room the same upgrade works.
func TestFullDisk(t *testing.T) {
	harness.ByHand(t)
	r := newPoweredServer(t, slots.TrialEnv+"=20")
	before := r.upgrade("before", r.Coracle(), "")
	testenv.NoError(t, r.until("", before).err)
	r.settled()
	for _, candidate := range []struct{ name, program, end string }{
		{"committed", r.Coracle(), ""}, {"refused", twoLevels(t).program, "\ncoracle-fault=exits"},
	} {
		t.Run(candidate.name, func(t *testing.T) {
			r.t = t
			s := r.upgrade(candidate.name, candidate.program, candidate.end)
			s.before = r.disk.saved()
			steps := r.until("", s).steps
			r.settled()
			tested := 0
			for _, at := range append([]string{""}, steps...) { // the first write is the snapshot's
				if at != "" && !grows(at) || s.goesBack && !strings.Contains(at, "tries") && !strings.Contains(at, "refused") {
					continue
				}
				tested++
				r.reset(s)
				running := r.must("cat", "/run/coracle/coracle.pid")
				mend := r.fails(s, at, func(call string) error {
					if grows(call) {
						return unix.ENOSPC
					}
					return nil
				})
				out, err := s.do()
				began := strings.Contains(out, "is on trial;")
				ran := r.settled()
				mend()
				t.Logf("%s: %v\n%s", at, err, out)
				testenv.Equal(t, ran, s.current, "with a disk that is full from %q on, there runs", at)
				if !began {
					testenv.Contains(t, out, "no space left on device", "at %q, the command says", at)
					testenv.Equal(t, r.must("cat", "/run/coracle/coracle.pid"), running, "at %q, the process:", at)
				} else {
					testenv.Contains(t, out, "was tried and refused", "at %q, the command says", at)
				}
			}
			testenv.True(t, tested > 0, "nothing was tested: %q", steps)
			if !s.goesBack {
				out, err := s.do()
				testenv.NoError(t, err, "with some room: %s", out)
				testenv.Equal(t, r.settled(), s.other, "with some room, there runs")
			}
		})
	}
}

// TestReadOnlyDisk: the versions, and then the whole data directory, turn read-only during a trial. Where a version can
// start at all, the one before does once the deadline is over; else the log says why none does. Nothing is lost: the
// trial goes on when the disk can be written again.
func TestReadOnlyDisk(t *testing.T) {
	harness.ByHand(t)
	for folder, says := range map[string]string{
		"data/versions": "stays on trial",
		"data":          "the data directory /var/lib/coracle cannot be written to: read-only file system",
	} {
		t.Run(folder, func(t *testing.T) {
			r := newPoweredServer(t, slots.TrialEnv+"=20")
			s := r.upgrade("committed", r.Coracle(), "")
			mend := r.fails(s, "symlink versions/previous.new", func(call string) error {
				if strings.Contains(call, " "+folder+"/") {
					return unix.EROFS
				}
				return nil
			})
			command := make(chan string, 1)
			go func() { out, err := s.do(); command <- fmt.Sprint(out, err) }()
			harness.Eventually(t, time.Minute, "the log says: "+says, func() error {
				_, err := r.Run("grep", says, "/var/log/coracle.log")
				return err
			})
			if folder == "data/versions" {
				testenv.Equal(t, r.awaitVersion(), s.current, "there runs")
				t.Log(r.must("coracle", "upgrade", "status"))
			}
			mend()
			r.must("coracle-service", "restart")
			testenv.Equal(t, r.settled(), s.other, "once the disk can be written, there runs")
			t.Log(<-command)
		})
	}
}

// processes are those that run a version, as this process numbers them.
func processes(digest string) (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/exe") // the pattern is correct
	for _, link := range links {
		if exe, err := os.Readlink(link); err == nil && strings.Contains(exe, digest) {
			pid := 0
			_, _ = fmt.Sscanf(link, "/proc/%d/exe", &pid) // it is a number
			pids = append(pids, pid)
		}
	}
	return pids
}

func signal(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig) // it may have ended
	}
}

// TestFrozenCandidate: the candidate stands still from the moment on at which it has passed the gate, until the guard
// has ended the trial. What it wanted to rename is gone then, and it ends.
func TestFrozenCandidate(t *testing.T) {
	harness.ByHand(t)
	r := newPoweredServer(t, slots.TrialEnv+"=30")
	s := r.upgrade("committed", r.Coracle(), "")
	var ended, thawed atomic.Bool
	r.disk.mu.Lock()
	r.disk.after = func(call string, _ uint32) bool {
		switch call {
		case "rename data/versions/previous.new data/versions/previous":
			signal(processes(s.other), syscall.SIGSTOP)
		case "unlink data/versions/trial":
			ended.Store(true)
		}
		return false
	}
	r.disk.asked = func(call string, _ uint32) {
		if call != "sync data/versions" || !ended.Load() || thawed.Swap(true) {
			return
		}
		signal(processes(s.other), syscall.SIGCONT)
		for until := time.Now().Add(20 * time.Second); len(processes(s.other)) > 0 && time.Now().Before(until); {
			time.Sleep(20 * time.Millisecond) // the guard stands still meanwhile
		}
	}
	r.disk.mu.Unlock()
	out, err := s.do()
	t.Logf("%v %s", err, out)
	testenv.True(t, ended.Load() && thawed.Load(), "the guard did not end the trial")
	testenv.Contains(t, out, "no commit within 30 s", "the command says")
	testenv.Contains(t, r.must("cat", "/var/log/coracle.log"), "this version was refused meanwhile; coracle ends", "the log says")
	testenv.Equal(t, r.settled(), s.current, "there runs")
}

// TestCommitBeforeTheGuardActs: the candidate is committed between the guard's look at the trial and its end.
func TestCommitBeforeTheGuardActs(t *testing.T) {
	harness.ByHand(t)
	r := newPoweredServer(t, slots.TrialEnv+"=30")
	s := r.upgrade("committed", r.Coracle(), "")
	r.must("sh", "-c", `cat >/etc/coracle/upgrade-check <<END
#!/bin/sh
[ ! -L /var/lib/coracle/versions/trial ] || [ -e /run/open ]
END
chmod 755 /etc/coracle/upgrade-check`)
	committed := make(chan struct{})
	var reads atomic.Int32 // of the starter's at the trial: before the start, and at the deadline
	var readers sync.Map   // the processes that did
	var late atomic.Bool
	r.disk.mu.Lock()
	r.disk.after = func(call string, _ uint32) bool {
		if call == "rename data/versions/trial data/versions/current" {
			close(committed)
		}
		return false
	}
	r.disk.asked = func(call string, pid uint32) {
		if call != "readlink data/versions/trial" || called(pid) != "readlink" {
			return
		}
		if _, again := readers.LoadOrStore(pid, true); again || reads.Add(1) != 2 {
			return
		}
		r.must("touch", "/run/open")
		select {
		case <-committed:
		case <-time.After(25 * time.Second):
			late.Store(true)
		}
	}
	r.disk.mu.Unlock()
	out, err := s.do()
	t.Logf("%v %s", err, out)
	testenv.True(t, reads.Load() == 2 && !late.Load(), "the guard read %d times, and waited in vain: %v", reads.Load(), late.Load())
	running := r.must("cat", "/run/coracle/coracle.pid")
	harness.Eventually(t, time.Minute, "the guard ends", func() error { return r.NoProcess("[c]oracle-start") })
	testenv.Equal(t, r.settled(), s.other, "there runs")
	testenv.Equal(t, r.must("cat", "/run/coracle/coracle.pid"), running, "the process:")
}

// called returns the name of the process that a machine numbers so, if it is "readlink".
func called(number uint32) string {
	files, _ := filepath.Glob("/proc/[0-9]*/status") // the pattern is correct
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(text), "Name:\treadlink\n") {
			continue
		}
		_, numbers, _ := strings.Cut(string(text), "NSpid:")
		numbers, _, _ = strings.Cut(numbers, "\n")
		if strings.HasSuffix(numbers, fmt.Sprintf("\t%d", number)) {
			return "readlink"
		}
	}
	return ""
}
