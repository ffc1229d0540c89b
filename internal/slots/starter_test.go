// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Bodies of programs. Each has written its folder's name and its arguments before.
const (
	exits  = "exit 1"
	stalls = "exec sleep 3600"
)

// soon is longer than anything here takes on a busy machine.
const soon = time.Minute

// machine has versions and a starter that runs in one kind of shell.
type machine struct {
	*testing.T
	dir     string   // the versions
	starter []string // the shell and the script
	path    string   // PATH of what runs
	seconds string   // until the deadline
}

// inEachShell runs a test with a machine of each kind: one version, "old", is current.
func inEachShell(t *testing.T, test func(m *machine)) {
	t.Helper()
	t.Parallel() // they wait for deadlines
	t.Run("sh", func(t *testing.T) {
		t.Parallel()
		test(newMachine(t, []string{"/bin/sh"}, "/usr/bin:/bin"))
	})
	t.Run("busybox", func(t *testing.T) {
		t.Parallel()
		const busybox = "/bin/busybox"
		if _, err := os.Stat(busybox); err != nil {
			testenv.Missing(t, testenv.Root, "this machine has no %s (apt-get install busybox-static)", busybox)
		}
		applets := t.TempDir()
		testenv.NoError(t, exec.Command(busybox, "--install", "-s", applets).Run())
		test(newMachine(t, []string{filepath.Join(applets, "sh")}, applets))
	})
}

func newMachine(t *testing.T, shell []string, path string) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{T: t, dir: filepath.Join(dir, "versions"), path: path, seconds: "3600"}
	script := filepath.Join(dir, StarterName)
	testenv.NoError(t, errors.Join(os.Mkdir(m.dir, 0o755), os.WriteFile(script, []byte(Starter), 0o755)))
	m.starter = append(shell, script)
	m.program("old", stalls)
	m.link(current, "old")
	return m
}

func (m *machine) file(name ...string) string {
	return filepath.Join(append([]string{m.dir}, name...)...)
}

func (m *machine) program(version, body string) {
	m.Helper()
	testenv.NoError(m, errors.Join(os.RemoveAll(m.file(version)), os.Mkdir(m.file(version), 0o755)))
	text := fmt.Sprintf("#!/bin/sh\necho %s \"$@\"\n%s\n", version, body)
	m.write(text, version, Program)
}

// write makes a program. No process may be forked meanwhile: it would have the file open until it runs another program,
// and the kernel starts no program that a process has open for writing. Other tests fork at the same time.
func (m *machine) write(text string, name ...string) {
	m.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	testenv.NoError(m, os.WriteFile(m.file(name...), []byte(text), 0o755))
}

func (m *machine) link(name, version string) {
	m.Helper()
	testenv.NoError(m, os.Symlink(version, m.file(name)))
}

// try puts a program on trial.
func (m *machine) try(body string) {
	m.Helper()
	m.program("next", body)
	testenv.NoError(m, os.WriteFile(m.file(tries), nil, 0o600))
	m.link(trial, "next")
}

// commit is what a candidate does that has passed the gate.
func (m *machine) commit() error { return os.Rename(m.file(trial), m.file(current)) }

// service is a start by the service manager.
type service struct {
	*exec.Cmd
	m      *machine
	output *bufio.Reader
	errors *testenv.Log
}

func (m *machine) start() *service {
	m.Helper()
	s := &service{m: m, Cmd: exec.Command(m.starter[0], append(slices.Clone(m.starter[1:]), "server", "a b")...), errors: &testenv.Log{}}
	s.Env = []string{"PATH=" + m.path, FolderEnv + "=" + m.dir, TrialEnv + "=" + m.seconds}
	s.Stderr = s.errors
	s.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a guard outlives its candidate
	s.output = bufio.NewReader(testenv.Must(s.StdoutPipe())(m))
	testenv.NoError(m, s.Start())
	m.Cleanup(func() { _ = syscall.Kill(-s.Process.Pid, syscall.SIGKILL) }) // fails when nothing of it is left
	return s
}

// runs wants a version to run, with the arguments as they were.
func (s *service) runs(version string) *service {
	s.m.Helper()
	line, err := s.output.ReadString('\n')
	testenv.Require(s.m, err == nil && line == version+" server a b\n", "%q runs (%v), want %s\n%s", line, err, version, s.errors)
	return s
}

// ended waits until the process has ended and nothing holds its output, and says how it ended.
func (s *service) ended() string {
	s.m.Helper()
	_, err := io.Copy(io.Discard, s.output)
	testenv.NoError(s.m, err)
	_ = s.Wait() // the state says it
	return s.ProcessState.String()
}

func (s *service) kill() *service {
	s.m.Helper()
	testenv.NoError(s.m, s.Process.Kill())
	s.ended()
	return s
}

// guarded says whether the guard of this start lives.
func (s *service) guarded() bool {
	files, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well-formed
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) // state, parent, group
		pid := filepath.Base(filepath.Dir(file))
		if fields[2] == strconv.Itoa(s.Process.Pid) && pid != fields[2] && fields[0] != "Z" {
			return true
		}
	}
	return false
}

// left waits until the guard has ended: a deadline that comes later changes nothing.
func (s *service) left() *service {
	s.m.Helper()
	testenv.Until(s.m, soon, "the guard ends", func() bool { return !s.guarded() })
	return s
}

// has wants what the links, the count and the record are: "current trial tries refused", with - for what is missing.
func (m *machine) has(want string) {
	m.Helper()
	got := []string{}
	for _, name := range []string{current, trial} {
		target, err := os.Readlink(m.file(name))
		if err != nil {
			target = "-"
		}
		got = append(got, target)
	}
	for _, name := range []string{tries, refused} {
		text, err := os.ReadFile(m.file(name))
		if err != nil {
			text = []byte("-")
		}
		got = append(got, strings.TrimSpace(string(text)))
	}
	testenv.Equal(m, strings.Join(got, "|"), want, "the state:")
}

func TestStarterRunsTheCurrentVersion(t *testing.T) {
	inEachShell(t, func(m *machine) {
		testenv.True(m, !m.start().runs("old").guarded(), "there is a guard without a trial")
		testenv.NoError(m, os.Remove(m.file(current)))
		m.link(previous, "old")
		m.start().runs("old")
		m.has("-|-|-|-")
	})
}

func TestCandidateThatExitsIsStartedThreeTimes(t *testing.T) {
	inEachShell(t, func(m *machine) {
		m.try(exits)
		for range 3 {
			s := m.start().runs("next")
			testenv.Equal(m, s.ended(), "exit status 1", "the candidate ended with")
			testenv.True(m, s.guarded(), "there is no guard, or it held the service's output")
		}
		m.has("old|next|...|-")
		s := m.start().runs("old")
		m.has("old|-|...|next 3 starts without a commit")
		testenv.Equal(m, s.errors.String(), "coracle-start: back to old, from next: 3 starts without a commit\n", "the log says")
	})
}

func TestCandidateThatIsKilledIsStartedThreeTimes(t *testing.T) {
	inEachShell(t, func(m *machine) {
		m.try(stalls)
		for range 3 {
			m.start().runs("next").kill()
		}
		m.start().runs("old")
		m.has("old|-|...|next 3 starts without a commit")
	})
}

func TestCandidateThatStallsIsKilledAtTheDeadline(t *testing.T) {
	inEachShell(t, func(m *machine) {
		m.try(stalls)
		m.seconds = "0.1"
		testenv.Equal(m, m.start().runs("next").ended(), "signal: killed", "the candidate ended with")
		m.has("old|-|.|next no commit within 0.1 s")
		m.start().runs("old")
	})
}

// TestFrozenCandidateIsKilled: it is stopped as it is about to commit. What thaws later finds no trial.
func TestFrozenCandidateIsKilled(t *testing.T) {
	inEachShell(t, func(m *machine) {
		m.try(stalls)
		m.seconds = "1"
		s := m.start().runs("next")
		testenv.NoError(m, s.Process.Signal(syscall.SIGSTOP))
		testenv.Equal(m, s.ended(), "signal: killed", "the candidate ended with")
		testenv.Fails(m, m.commit(), "a candidate that is off trial committed itself")
	})
}

// TestCommittedCandidateStays also holds for one that commits before the guard has read anything.
func TestCommittedCandidateStays(t *testing.T) {
	inEachShell(t, func(m *machine) {
		for range 10 {
			m.try(`mv -T "$` + FolderEnv + `/trial" "$` + FolderEnv + `/current"; echo committed; ` + stalls)
			m.seconds = "0.05"
			s := m.start().runs("next")
			testenv.Equal(m, testenv.Must(s.output.ReadString('\n'))(m), "committed\n", "")
			s.left()
			m.has("next|-|.|-")
			s.kill()
			m.start().runs("next").kill()
			testenv.NoError(m, errors.Join(os.Remove(m.file(current)), os.Symlink("old", m.file(current))))
		}
	})
}

// TestCommitAgainstDeadline: exactly one of both holds, and a committed candidate is not killed.
func TestCommitAgainstDeadline(t *testing.T) {
	inEachShell(t, func(m *machine) {
		m.try(stalls)
		m.seconds = "0.03"
		commits := 0
		for i := range 30 {
			if i > 0 {
				m.link(trial, "next")
			}
			s := m.start().runs("next")
			time.Sleep(2 * time.Duration(i) * time.Millisecond) // the commit moves over the deadline
			err := m.commit()
			s.left()
			record, _ := os.ReadFile(m.file(refused)) // it may be missing
			if err == nil {
				commits++
				testenv.Equal(m, string(record), "", "after a commit there is a refusal:")
				testenv.NoError(m, s.Process.Signal(syscall.Signal(0)), "a committed candidate was killed")
				s.kill()
				testenv.NoError(m, errors.Join(os.Remove(m.file(current)), os.Symlink("old", m.file(current))))
			} else {
				testenv.Equal(m, s.ended(), "signal: killed", "a candidate without a commit ended with")
				testenv.Equal(m, string(record), "next no commit within 0.03 s\n", "")
			}
			_ = os.Remove(m.file(refused)) // it may be missing
			testenv.NoError(m, os.WriteFile(m.file(tries), nil, 0o600))
		}
		m.Logf("%d commits of 30", commits)
	})
}

// TestGuardOfAnEarlierStart neither ends the trial nor anything else.
func TestGuardOfAnEarlierStart(t *testing.T) {
	inEachShell(t, func(m *machine) {
		m.try(stalls)
		m.seconds = "0.5"
		first := m.start().runs("next").kill()
		m.seconds = "3600"
		second := m.start().runs("next")
		first.left()
		m.has("old|next|..|-")
		second.kill()
		m.seconds = "0.1"
		testenv.Equal(m, m.start().runs("next").ended(), "signal: killed", "the candidate ended with")
		m.has("old|-|...|next no commit within 0.1 s")
	})
}

func TestCandidateWithoutWholeProgram(t *testing.T) {
	inEachShell(t, func(m *machine) {
		for _, damage := range []func() error{
			func() error { return os.RemoveAll(m.file("next")) }, // the link dangles
			func() error { return os.Remove(m.file("next", Program)) },
			func() error { return os.Chmod(m.file("next", Program), 0o600) },
		} {
			m.try(exits)
			testenv.NoError(m, damage())
			m.start().runs("old").kill()
			m.has("old|-||next its program is missing")
		}
		m.try(exits)
		for _, text := range []string{"\x7fELF\x02\x01\x01", ""} { // for another machine, and empty
			m.write(text, "next", Program)
			_ = os.Remove(m.file(trial))
			testenv.NoError(m, os.WriteFile(m.file(tries), nil, 0o600))
			m.link(trial, "next")
			for range 3 {
				m.start().ended()
			}
			m.start().runs("old").kill()
			m.has("old|-|...|next 3 starts without a commit")
		}
	})
}

// TestCountIsMissing: a trial without the file is counted from the first start that finds none.
func TestCountIsMissing(t *testing.T) {
	inEachShell(t, func(m *machine) {
		m.try(stalls)
		testenv.NoError(m, os.Remove(m.file(tries)))
		m.start().runs("next")
		m.has("old|next|.|-")
	})
}

// onSmallDisk mounts a file system for the versions, and returns what fills it and what makes it read-only.
func (m *machine) onSmallDisk() (fill, readOnly func()) {
	m.Helper()
	testenv.RequireRoot(m, "it mounts")
	testenv.NoError(m, unix.Mount("coracle-test", m.dir, "tmpfs", 0, "size=64k,mode=755"))
	m.Cleanup(func() { testenv.NoError(m, unix.Unmount(m.dir, unix.MNT_DETACH)) })
	m.program("old", stalls)
	m.link(current, "old")
	fill = func() {
		f := testenv.Must(os.Create(m.file("filler")))(m)
		defer f.Close()
		for page := make([]byte, 4096); ; {
			if _, err := f.Write(page); err != nil {
				testenv.ErrorIs(m, err, unix.ENOSPC)
				return
			}
		}
	}
	return fill, func() {
		testenv.NoError(m, unix.Mount("", m.dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	}
}

func TestFullDiskEndsTheTrial(t *testing.T) {
	inEachShell(t, func(m *machine) {
		fill, _ := m.onSmallDisk()
		m.try(stalls)
		fill()
		m.start().runs("old").kill()
		m.has("old|-||-") // the record has no room either
		testenv.NoError(m, os.Remove(m.file("filler")))
		m.start().runs("old").kill()

		m.try(stalls)
		for range 3 {
			m.start().runs("next").kill()
		}
		fill() // the record alone has no room
		s := m.start().runs("old").kill()
		m.has("old|-|...|-")
		testenv.Contains(m, s.errors.String(), "from next: 3 starts without a commit", "the log:")
		_, err := os.Stat(m.file("refused.new"))
		testenv.ErrorIs(m, err, os.ErrNotExist)
	})
}

// TestReadOnlyDiskRunsTheOldVersion also when it becomes so during the trial.
func TestReadOnlyDiskRunsTheOldVersion(t *testing.T) {
	inEachShell(t, func(m *machine) {
		_, readOnly := m.onSmallDisk()
		m.try(stalls)
		m.seconds = "1"
		s := m.start().runs("next")
		readOnly()
		testenv.Equal(m, s.ended(), "signal: killed", "the candidate ended with")
		s = m.start().runs("old")
		m.has("old|next|.|-")
		testenv.Equal(m, s.errors.String(), "coracle-start: next stays on trial, and old runs: a start cannot be counted: the disk is full or read-only\n",
			"the log says")
	})
}

func TestStarterNeedsItsFolder(t *testing.T) {
	inEachShell(t, func(m *machine) {
		c := exec.Command(m.starter[0], m.starter[1:]...)
		c.Env = []string{"PATH=" + m.path}
		out, err := c.CombinedOutput()
		testenv.True(m, err != nil && strings.Contains(string(out), "run install.sh again"), "%v: %s", err, out)
	})
}

// TestGuardEndsSoonAfterTheTrial, long before the deadline.
func TestGuardEndsSoonAfterTheTrial(t *testing.T) {
	inEachShell(t, func(m *machine) {
		m.try(stalls)
		m.seconds = "600"
		s := m.start().runs("next")
		testenv.NoError(m, m.commit())
		s.left()
		testenv.NoError(m, s.Process.Signal(syscall.Signal(0)), "the candidate was killed")
	})
}

// TestCandidateOffTrialIsKilledAtTheDeadline: the trial was ended by hand, and the restart could not end the candidate,
// which hangs. It runs no longer than one on trial.
func TestCandidateOffTrialIsKilledAtTheDeadline(t *testing.T) {
	inEachShell(t, func(m *machine) {
		m.try(stalls)
		m.seconds = "1"
		s := m.start().runs("next")
		testenv.NoError(m, s.Process.Signal(syscall.SIGSTOP))
		testenv.NoError(m, os.Remove(m.file(trial)))
		testenv.Equal(m, s.left().ended(), "signal: killed", "the candidate ended with")
		m.has("old|-|.|-")
		m.start().runs("old")
	})
}

// TestDiskThatFailsBehindTheWayBack: the trial is ended, its record is not, and cannot be removed either. The candidate
// is killed all the same.
func TestDiskThatFailsBehindTheWayBack(t *testing.T) {
	inEachShell(t, func(m *machine) {
		m.try(stalls)
		testenv.NoError(m, os.Mkdir(m.file("refused.new"), 0o755))
		m.seconds = "0.1"
		testenv.Equal(m, m.start().runs("next").ended(), "signal: killed", "the candidate ended with")
		m.has("old|-|.|-")
	})
}
