// SPDX-License-Identifier: Apache-2.0

package uml

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// StartOptions say what a User-Mode Linux is made of. Memory, Init, Dir and Console are required.
type StartOptions struct {
	// Kernel is a program; empty is that of Debian's package user-mode-linux.
	Kernel string
	// Enter is a command that runs the kernel, in another network namespace say; empty is none.
	Enter []string
	// Memory is how much it has, in MB.
	Memory int
	// Root is a folder of the host, in which the guest writes; empty is the host's root, read-only.
	Root string
	// Init is its first process, a program below the root.
	Init string
	// Dir is a folder for files that are kept as long as it runs, and for its memory where there is little room for
	// that in the host's memory.
	Dir string
	// Args are further parameters of the kernel, and variables of the first process.
	Args []string
	// Console takes what the kernel says and what is written to its console.
	Console io.Writer
	// Files are descriptors of the kernel's, from 3 on.
	Files []*os.File
}

// Start starts a User-Mode Linux in a session of its own. The end of the context, and the command's Cancel, take its
// power. Its death signal follows the calling thread.
func Start(ctx context.Context, o StartOptions) (*exec.Cmd, error) {
	env, err := environ(o.memoryDir(), o.Dir)
	if err != nil {
		return nil, err
	}
	if o.Kernel == "" {
		o.Kernel = packaged
	}
	root := []string{"rootflags=/", "ro"}
	if o.Root != "" {
		root = []string{"rootflags=" + o.Root, "rw"}
	}
	// A shell in between, since the first process of a pid namespace cannot abort, which is how the kernel ends.
	args := append([]string{"-c", `"$@"; exit $?`, "sh"}, o.Enter...)
	args = append(args, o.Kernel, fmt.Sprintf("mem=%dM", o.Memory), "root=/dev/root", "rootfstype=hostfs", "init="+o.Init, "panic=-1",
		"con=null", "con0=null,fd:1", "ssl=null")
	cmd := exec.CommandContext(ctx, "sh", append(append(args, root...), o.Args...)...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = env, o.Console, o.Console, o.Files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 { // every process of the guest's ends with its first one
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID
	}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	cmd.WaitDelay = 10 * time.Second
	return cmd, cmd.Start()
}

// memoryDir is where its memory is, which is a file that it must be allowed to execute: in the host's memory if there
// is room for several.
func (o StartOptions) memoryDir() string {
	var st unix.Statfs_t
	err := unix.Statfs("/dev/shm", &st)
	if err == nil && int64(st.Bavail)*st.Bsize > 4*int64(o.Memory)<<20 && st.Flags&unix.ST_NOEXEC == 0 {
		return "/dev/shm"
	}
	return o.Dir
}

// Require ends a test where the package's kernel, or one of these programs, cannot be had.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		testenv.Missing(t, testenv.UserModeLinux, "User-Mode Linux runs on amd64 only")
	}
	for _, p := range append(programs, packaged) {
		if _, err := exec.LookPath(p); err != nil {
			testenv.Missing(t, testenv.UserModeLinux, "%s is not installed: packaging/deps.sh test installs it", p)
		}
	}
	if _, err := modules(); err != nil {
		testenv.Missing(t, testenv.UserModeLinux, "%v", err)
	}
}

// MakeDisk makes a disk of that many bytes with ext4, with further arguments of mkfs.ext4's. It takes no room as long
// as nothing is written to it.
func MakeDisk(file string, size int64, args ...string) error {
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		return err
	}
	if out, err := exec.Command("mkfs.ext4", append(append([]string{"-q", "-F"}, args...), file)...).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w\n%s", err, out)
	}
	return nil
}
