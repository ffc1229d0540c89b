// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/uml"
)

const (
	blockID  = 2       // virtio's number of block devices
	pipeSize = 1 << 20 // bytes: what users may have
)

// A Machine boots a guest from a root folder, time and again.
type Machine struct {
	Dir     string // for its files, and the console of each boot
	Program string // the first process
	Seed    int
	Server  int // its number, from 1
	Servers int // of the cluster
	Network *Switch
}

// prepare makes the root folder.
func (m *Machine) prepare() error {
	driver, err := uml.ModuleFile("virtio_blk")
	if err != nil {
		return err
	}
	root := m.root()
	// The disk's mount point is a folder of the host's, which stays empty.
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
	lines  *os.File // from the guest
	orders *os.File // to the guest
	served chan error
	once   sync.Once
	gone   chan struct{}
}

// BootOptions differ from boot to boot.
type BootOptions struct {
	Number  int
	Journal string // ext4's mount option
	Idle    bool   // the store is opened, and that is all
}

// Start boots the machine with a disk.
func (m *Machine) Start(ctx context.Context, o BootOptions, disk *Disk) (*Boot, error) {
	socket := filepath.Join(m.Dir, "disk.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the guest's kernel: %w", err)
	}
	defer func() { _ = listener.Close() }()
	if err := listener.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	b := &Boot{number: o.Number, disk: disk, served: make(chan error, 1), gone: make(chan struct{})}
	if err := m.run(ctx, b, o, socket); err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		b.served <- nil
		return nil, errors.Join(fmt.Errorf("the guest's kernel does not come for its disk: %w", err), b.End())
	}
	go func() { b.served <- errors.Join(serveDisk(conn, disk), conn.Close()) }()
	return b, nil
}

// run starts the kernel.
func (m *Machine) run(ctx context.Context, b *Boot, o BootOptions, socket string) error {
	var guestEnds []*os.File // the guest's ends of what it has beside the disk
	defer func() {
		for _, f := range guestEnds {
			f.Close()
		}
	}()
	console, err := os.Create(m.Console(o.Number))
	if err != nil {
		return err
	}
	defer console.Close()
	lines, line, err := os.Pipe()
	if err != nil {
		return err
	}
	guestEnds = append(guestEnds, line)
	// What a guest finds fits in at once: it is not good at waiting for a pipe.
	if _, err := unix.FcntlInt(line.Fd(), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		return errors.Join(fmt.Errorf("enlarge a pipe: %w", err), lines.Close())
	}
	order, orders, err := os.Pipe()
	if err != nil {
		return errors.Join(err, lines.Close())
	}
	guestEnds = append(guestEnds, order)
	b.lines, b.orders = lines, orders
	// Descriptors of Files start at 3.
	args := []string{
		fmt.Sprintf("virtio_uml.device=%s:%d", socket, blockID), "ssl0=fd:4,fd:3",
		fmt.Sprintf("boot=%d", o.Number), fmt.Sprintf("seed=%d", m.Seed), "journal=" + o.Journal,
		fmt.Sprintf("server=%d", m.Server), fmt.Sprintf("servers=%d", m.Servers), fmt.Sprintf("idle=%t", o.Idle),
	}
	if m.Network != nil {
		cable, err := m.Network.Plug()
		if err != nil {
			return errors.Join(err, lines.Close(), orders.Close())
		}
		guestEnds = append(guestEnds, cable)
		args = append(args, fmt.Sprintf("vec0:transport=fd,fd=5,mac=02:00:00:00:00:%02x", m.Server))
	}
	// Processes of the machine that outlive its first become our children, and
	// are waited for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return errors.Join(err, lines.Close(), orders.Close())
	}
	b.cmd, err = uml.Start(ctx, uml.StartOptions{
		Memory: 512, Root: m.root(), Init: "/init", Dir: m.Dir, Args: args, Console: console, Files: guestEnds,
	})
	if err != nil {
		return errors.Join(err, lines.Close(), orders.Close())
	}
	return nil
}

// Go tells the guest to write.
func (b *Boot) Go() error {
	if _, err := b.orders.WriteString("go\n"); err != nil {
		return fmt.Errorf("tell the guest to write: %w", err)
	}
	return nil
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

// Gone is closed when nothing is left of the machine.
func (b *Boot) Gone() <-chan struct{} { return b.gone }

// End kills the machine and waits until nothing is left of it.
func (b *Boot) End() error {
	var err error
	b.once.Do(func() {
		_ = b.cmd.Cancel()
		_ = b.cmd.Wait() // killed
		for err := error(nil); !errors.Is(err, unix.ECHILD); {
			_, err = unix.Wait4(-b.cmd.Process.Pid, nil, 0, nil)
		}
		close(b.gone)
		err = errors.Join(<-b.served, b.lines.Close(), b.orders.Close())
	})
	return err
}
