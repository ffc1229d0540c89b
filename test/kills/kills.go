// SPDX-License-Identifier: Apache-2.0

// Package kills runs a program and kills it before one of its changes to files, the first, the second, and so on. So a
// test sees what a kill leaves at each step of what a program does.
//
// A kill loses nothing that the kernel has: test/powercut is for what a power cut loses. The program is traced
// (ptrace), which needs no rights beyond those to start it.
package kills

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// changes are the system calls that change files, besides openat with O_CREAT. Not among them is write: what it leaves
// can be seen before the next of these.
var changes = []uint64{
	unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT, unix.SYS_SYMLINKAT, unix.SYS_LINKAT,
	unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE,
}

// Var is set to "each" where a test kills a program before each of its changes (make soak), and not before some of
// them.
const Var = "CORACLE_TEST_KILLS"

// Steps returns before which of so many changes a test kills: before some, drawn at random, or before each (Var).
func Steps(t testing.TB, changes, some int) (steps []int) {
	t.Helper()
	testenv.Require(t, changes > 20, "few changes of files were seen: %d", changes)
	random := rand.New(rand.NewPCG(testenv.Seed(t), 0))
	for _, n := range random.Perm(changes) {
		if os.Getenv(Var) == "each" || len(steps) < some {
			steps = append(steps, n+1)
		}
	}
	slices.Sort(steps)
	t.Logf("of %d changes of files: %v", changes, steps)
	return steps
}

// Before starts a program and kills it before its change to files number n, from 1 on. It returns the changes that it
// saw: n if the program was killed, fewer if it ended before. With 0 it kills nothing.
func Before(t testing.TB, cmd *exec.Cmd, n int) (seen int) {
	t.Helper()
	type result struct {
		seen int
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // which is the tracer, and ends with this goroutine
		seen, err := trace(cmd, n)
		done <- result{seen, err}
	}()
	r := <-done
	testenv.NoError(t, r.err, "tracing %s", cmd)
	return r.seen
}

func trace(cmd *exec.Cmd, n int) (seen int, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	kill := func() { _ = unix.Kill(pid, unix.SIGKILL) }
	options, began := unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACEFORK|unix.PTRACE_O_TRACEVFORK|unix.PTRACE_O_EXITKILL, false
	for {
		var status unix.WaitStatus
		thread, err := unix.Wait4(-pid, &status, unix.WALL, nil) // only this process and its threads
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD:
			return seen, nil
		case err != nil:
			kill()
			return seen, fmt.Errorf("waiting: %w", err)
		case status.Exited(), status.Signaled():
			if thread == pid {
				return seen, nil
			}
			continue
		}
		signal := 0
		switch {
		case !began:
			began = true
			if err := unix.PtraceSetOptions(pid, options); err != nil {
				kill()
				return seen, fmt.Errorf("setting the tracer's options: %w", err)
			}
		case status.StopSignal() == unix.SIGTRAP|0x80:
			if isChange(thread) {
				if seen++; seen == n {
					kill()
				}
			}
		case status.StopSignal() != unix.SIGTRAP && status.StopSignal() != unix.SIGSTOP:
			signal = int(status.StopSignal())
		}
		if err := unix.PtraceSyscall(thread, signal); err != nil && err != unix.ESRCH {
			kill()
			return seen, fmt.Errorf("continuing: %w", err)
		}
	}
}

// callInfo is the kernel's struct ptrace_syscall_info at the entry of a system call.
type callInfo struct {
	op        uint8
	_         [3]uint8
	arch      uint32
	_, _      uint64
	number    uint64
	arguments [6]uint64
	_         uint64
}

const (
	getCallInfo = 0x420e // PTRACE_GET_SYSCALL_INFO of ptrace.h
	entry       = 1      // PTRACE_SYSCALL_INFO_ENTRY
)

// isChange says whether a thread is about to change files.
func isChange(thread int) bool {
	var info callInfo
	_, _, failed := unix.Syscall6(unix.SYS_PTRACE, getCallInfo, uintptr(thread), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if failed != 0 || info.op != entry {
		return false
	}
	return slices.Contains(changes, info.number) || info.number == unix.SYS_OPENAT && info.arguments[2]&unix.O_CREAT != 0
}
