// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	kernel     = "linux.uml"
	modulesDir = "/usr/lib/uml/modules"
	blockID    = 2 // virtio's number of block devices
)

// Missing says why there can be no machine here, or is empty.
func Missing() string {
	if runtime.GOARCH != "amd64" {
		return "User-Mode Linux runs on amd64 only"
	}
	for _, tool := range []string{kernel, "mkfs.ext4", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " is not installed: packaging/deps.sh test installs it"
		}
	}
	if _, err := blockDriver(); err != nil {
		return err.Error()
	}
	return ""
}

// blockDriver is the file of the guest kernel's virtio_blk.
func blockDriver() (string, error) {
	found, err := filepath.Glob(modulesDir + "/*/kernel/drivers/block/virtio_blk.ko")
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("the package user-mode-linux has %d virtio_blk modules, one is needed", len(found))
	}
	return found[0], nil
}

// A Machine boots a guest from a root folder, time and again.
type Machine struct {
	Dir     string // for its files, and the console of each boot
	Program string // the first process
	Seed    int
}

// prepare makes the root folder.
func (m *Machine) prepare() error {
	driver, err := blockDriver()
	if err != nil {
		return err
	}
	root := m.root()
	for _, dir := range []string{"dev", "disk", "sys", "proc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(copyFile(driver, filepath.Join(root, "virtio_blk.ko")), copyFile(m.Program, filepath.Join(root, "init")))
}

func (m *Machine) root() string { return filepath.Join(m.Dir, "root") }

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// A Boot is a machine that runs.
type Boot struct {
	number int
	disk   *Disk
	cmd    *exec.Cmd
	lines  io.ReadCloser
	served chan error
	once   sync.Once
	gone   chan struct{}
}

// Start boots the machine with a disk. Its lines go to fn, one at a time.
func (m *Machine) Start(ctx context.Context, number int, disk *Disk, journal string) (*Boot, error) {
	socket := filepath.Join(m.Dir, "disk.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the guest's kernel: %w", err)
	}
	defer listener.Close()
	if err := listener.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	console, err := os.Create(m.Console(number))
	if err != nil {
		return nil, err
	}
	defer console.Close()
	lines, line, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer line.Close()
	b := &Boot{number: number, disk: disk, lines: lines, served: make(chan error, 1), gone: make(chan struct{})}
	b.cmd = exec.CommandContext(ctx, kernel, "mem=512M", "rootfstype=hostfs", "rootflags="+m.root(), "rw", "init=/init",
		fmt.Sprintf("virtio_uml.device=%s:%d", socket, blockID), "con=null", "con0=null,fd:1", "ssl=null", "ssl0=null,fd:3",
		"panic=-1", fmt.Sprintf("boot=%d", number), fmt.Sprintf("seed=%d", m.Seed), "journal="+journal)
	b.cmd.Env = append(os.Environ(), "TMPDIR="+m.Dir, "HOME="+m.Dir)
	b.cmd.Stdout, b.cmd.Stderr, b.cmd.ExtraFiles = console, console, []*os.File{line}
	// A session of its own, so that its processes can be told from others. Those
	// that outlive the first one become our children, and are waited for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("boot: %w", err), lines.Close())
	}
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	b.cmd.Cancel = b.kill
	if err := b.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("boot: %w", err), lines.Close())
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		b.served <- nil
		return nil, errors.Join(fmt.Errorf("the guest's kernel does not come for its disk: %w", err), b.End())
	}
	go func() { b.served <- errors.Join(serveDisk(conn, disk), conn.Close()) }()
	return b, nil
}

// Console is the file with what the kernel and the store had to say.
func (m *Machine) Console(number int) string {
	return filepath.Join(m.Dir, fmt.Sprintf("console.%d", number))
}

// Lines hands each complete line to fn, until the machine is gone.
func (b *Boot) Lines(fn func(string) error) error {
	in := bufio.NewReaderSize(b.lines, 64<<10)
	var err error
	for {
		line, end := in.ReadString('\n')
		if end != nil {
			return err // what is left has no end and does not count
		}
		if err == nil {
			if err = fn(strings.TrimSuffix(line, "\n")); err != nil {
				b.disk.CutAfter(0)
			}
		}
	}
}

// kill ends every process of the machine.
func (b *Boot) kill() error {
	err := syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// Gone is closed when nothing is left of the machine.
func (b *Boot) Gone() <-chan struct{} { return b.gone }

// End kills the machine and waits until nothing is left of it.
func (b *Boot) End() error {
	var err error
	b.once.Do(func() {
		_ = b.kill()
		_ = b.cmd.Wait() // killed
		for err := error(nil); !errors.Is(err, unix.ECHILD); {
			_, err = unix.Wait4(-b.cmd.Process.Pid, nil, 0, nil)
		}
		close(b.gone)
		err = errors.Join(<-b.served, b.lines.Close())
	})
	return err
}
