//go:build bench

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// minLimit is too little, maxLimit enough: between them, in steps of limitStep, the smallest is looked for. All
	// MB.
	minLimit, maxLimit, limitStep = 144, 272, 16
	// startPatience is how long a start may take, three pods included.
	startPatience = 3 * time.Minute
	// answerPatience is how long the API server may take for an answer afterwards.
	answerPatience = 10 * time.Second
	// maxFaults is how many pages a second a healthy server reads from the disk at rest. More is thrashing.
	maxFaults = 50
)

// TestLimit finds the smallest limit of a memory control group in which a server stays healthy after a cold start: it
// is charged for its program's pages, of which none is in memory when it starts. CORACLE_BENCH_LIMIT tries one limit,
// in MB, for as long as CORACLE_BENCH_LIMIT_TIME says (such as 1h); CORACLE_BENCH_ENV has variables for the server,
// such as GOGC=15.
func TestLimit(t *testing.T) {
	settle := window(2 * time.Minute)
	if one := os.Getenv("CORACLE_BENCH_LIMIT"); one != "" {
		mb, err := strconv.Atoi(one)
		testenv.NoError(t, err)
		length := window(10 * time.Minute)
		if text := os.Getenv("CORACLE_BENCH_LIMIT_TIME"); text != "" {
			length, err = time.ParseDuration(text)
			testenv.NoError(t, err)
		}
		fmt.Printf("limit %d MB, for %s: %s\n", mb, length, stderrOf(tryLimit(t, mb, length)))
		return
	}
	low, high := minLimit, maxLimit
	for high-low > limitStep {
		mid := (low + high) / 2 / limitStep * limitStep
		err := tryLimit(t, mid, settle)
		fmt.Printf("limit %d MB: %s\n", mid, stderrOf(err))
		if err == nil {
			high = mid
		} else {
			low = mid
		}
	}
	for ; high <= maxLimit; high += limitStep {
		err := tryLimit(t, high, window(10*time.Minute))
		fmt.Printf("limit %d MB, longer: %s\n", high, stderrOf(err))
		if err == nil {
			fmt.Printf("%-44s %12d\n", "smallest memory limit, cold start, 3 pods (MB)", high)
			return
		}
	}
	t.Errorf("no limit up to %d MB is enough", maxLimit)
}

func stderrOf(err error) string {
	if err == nil {
		return "healthy"
	}
	return err.Error()
}

// tryLimit starts a server with a limit, cold, and says whether it starts, runs three pods and stays healthy so long.
func tryLimit(t *testing.T, limit int, length time.Duration) (err error) {
	t.Run(fmt.Sprintf("%dMB", limit), func(t *testing.T) {
		m := harness.NewMachine(t)
		t.Setenv("CORACLE_BIN", limited(t, m, limit))
		s := m.NewServer()
		testenv.NoError(t, os.MkdirAll(filepath.Join(s.DataDir, "images"), 0o755))
		harness.WriteBoxImage(t, filepath.Join(s.DataDir, "images", "box.tar"))
		s.Start()
		err = healthy(s, length)
		if err != nil {
			t.Logf("%v\n%s", err, s.LogTail(5))
		}
	})
	return err
}

// limited puts a cold copy of the program on a machine, and returns a program that runs it in a control group with a
// limit when it is to be a server.
func limited(t *testing.T, m *harness.Machine, limit int) string {
	cold := filepath.Join(m.Dir, "coracle-cold")
	testenv.NoError(t, copyCold(m.Coracle(), cold))
	script := filepath.Join(m.Dir, "coracle")
	text := fmt.Sprintf(`#!/bin/sh
[ "$1" = server ] || exec %q "$@"
cd /sys/fs/cgroup
if [ -e cgroup.controllers ]; then
  echo +memory > cgroup.subtree_control; mkdir -p limited; echo %[3]dM > limited/memory.max
else
  cd memory; mkdir -p limited; echo %[3]dM > limited/memory.limit_in_bytes
fi || exit 1
echo $$ > limited/cgroup.procs && cd / && exec env %[4]s %[2]q "$@"
`, m.Coracle(), cold, limit, os.Getenv("CORACLE_BENCH_ENV"))
	testenv.NoError(t, os.WriteFile(script, []byte(text), 0o755))
	return script
}

// copyCold copies a file and makes the kernel forget the copy's pages (posix_fadvise(2)): they are charged to the
// cgroup that reads them first.
func copyCold(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	back, err := os.Open(to)
	if err != nil {
		return err
	}
	defer back.Close()
	return unix.Fadvise(int(back.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// healthy waits for the node and three pods, and then watches them.
func healthy(s *harness.Server, length time.Duration) error {
	began := time.Now()
	ready := func() error {
		return harness.Exactly("True")(kubectl(s, startPatience, "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`))
	}
	pods := func() error {
		for i := range idlePods {
			name := fmt.Sprintf("idle-%d", i)
			_, err := kubectl(s, startPatience, "run", name, "--image="+harness.BoxImage, "--image-pull-policy=Never", "--command", "--", "testbox", "hold")
			if err != nil && !strings.Contains(err.Error(), "AlreadyExists") {
				return err
			}
		}
		_, err := kubectl(s, startPatience, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
		return err
	}
	for _, step := range []func() error{ready, pods} {
		for err := step(); err != nil; err = step() {
			if !alive(s) {
				return fmt.Errorf("it ended after %v", time.Since(began).Round(time.Second))
			}
			if time.Since(began) > startPatience {
				return fmt.Errorf("not ready after %v: %w", startPatience, err)
			}
			time.Sleep(time.Second) // between two looks
		}
	}
	started := time.Since(began)
	time.Sleep(window(time.Minute)) // what follows is about rest
	faults, since := majorFaults(s), time.Now()
	for time.Since(since) < length {
		time.Sleep(10 * time.Second) // between two looks
		if !alive(s) {
			return fmt.Errorf("it ended after %v", time.Since(began).Round(time.Second))
		}
		if _, err := kubectl(s, answerPatience, "get", "--raw", "/readyz"); err != nil {
			return fmt.Errorf("no answer in time after %v: %w", time.Since(began).Round(time.Second), err)
		}
	}
	rate := float64(majorFaults(s)-faults) / time.Since(since).Seconds()
	fmt.Printf("started within %v; then %.1f major faults a second, RSS %.0f MB\n", started.Round(100*time.Millisecond), rate, proc.StatusMB(s.Pid(), "VmRSS:"))
	if rate > maxFaults {
		return fmt.Errorf("it reads %.0f pages a second from the disk at rest", rate)
	}
	return ready()
}

func alive(s *harness.Server) bool { return syscall.Kill(s.Pid(), 0) == nil }

func kubectl(s *harness.Server, within time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return harness.Output(s.KubectlCommand(ctx, args...))
}

// majorFaults is the number of pages that a process had to read (proc_pid_stat(5), field 12).
func majorFaults(s *harness.Server) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Pid()))
	if err != nil {
		return 0
	}
	text := string(b)
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	n, _ := strconv.ParseInt(f[9], 10, 64)
	return n
}
