//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodepower

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/powercut"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// diskEnv marks a re-executed test binary that is to serve the disk in this file.
const diskEnv = "CORACLE_TEST_NODE_DISK"

func TestMain(m *testing.M) {
	if file := os.Getenv(diskEnv); file != "" {
		if err := serveDisk(file); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		return
	}
	harness.Main(m)
}

// serveDisk is the child process. It prints the name of a block device, and "off" once the power is off. Commands come
// on its standard input, whose end ends it: "cut N" cuts after N requests that change the disk, and "settle SEED UNIT
// KEPT" makes the file what the power cut has left (powercut.Loss) and prints what that is.
func serveDisk(file string) error {
	d, err := powercut.OpenDisk(file)
	if err != nil {
		return err
	}
	point := file + ".fuse"
	if err := os.WriteFile(point, nil, 0o600); err != nil {
		return err
	}
	if err := serveFile(d, point); err != nil {
		return err
	}
	device, err := attach(point)
	if err != nil {
		return err
	}
	defer device.Close()
	fmt.Println(device.Name())
	go func() { <-d.Off(); fmt.Println("off") }() // ends with the process
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		var n int
		var seed uint64
		var loss powercut.Loss
		if _, err := fmt.Sscanf(s.Text(), "cut %d", &n); err == nil {
			d.CutAfter(n)
		}
		if _, err := fmt.Sscanf(s.Text(), "settle %d %d %g", &seed, &loss.Unit, &loss.Kept); err == nil {
			cached, err := d.Settle(rand.New(rand.NewPCG(seed, 0)), loss)
			if err != nil {
				return err
			}
			fmt.Printf("settled: %d requests had no flush, %v\n", cached, loss)
		}
	}
	return nil
}

// attach returns a loop device with the file, which the kernel gives up when nothing has it open or mounted any more.
func attach(file string) (*os.File, error) {
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) { // another process was faster
			return nil, fmt.Errorf("set up loop device %d: %w", n, err)
		}
	}
}

// power is a disk that is switched on: the child process that serves it.
type power struct {
	t      testing.TB
	device string
	cmd    *exec.Cmd
	in     io.WriteCloser
	lines  chan string // what it prints after the device's name; closed with its end
}

// switchOn checks the file system in the file, as a boot does, and serves the file as a block device.
func switchOn(t testing.TB, file string) *power {
	t.Helper()
	checkFileSystem(t, file)
	p := &power{t: t, cmd: exec.Command(testenv.Must(os.Executable())(t)), lines: make(chan string, 8)}
	p.cmd.Env = append(os.Environ(), diskEnv+"="+file)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	p.in = testenv.Must(p.cmd.StdinPipe())(t)
	out := testenv.Must(p.cmd.StdoutPipe())(t)
	testenv.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(p.end)
	p.device = p.next()
	testenv.Require(t, strings.HasPrefix(p.device, "/dev/"), "the disk is not served: %s", p.device)
	return p
}

// checkFileSystem replays the journal. More than that must not be needed: a power cut never damages ext4 itself.
func checkFileSystem(t testing.TB, file string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-p", file).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 { // corrected: "recovering journal", "clearing orphaned inode"
		err = nil
	}
	testenv.Require(t, err == nil, "the file system is damaged: %v\n%s", err, out)
}

func (p *power) next() string {
	p.t.Helper()
	select {
	case line := <-p.lines:
		return line
	case <-time.After(harness.Soon):
		p.t.Fatal("the disk says nothing")
	}
	return ""
}

// cutAfter cuts the power when that many more requests have changed the disk, and waits for it.
func (p *power) cutAfter(requests int) {
	p.t.Helper()
	_, err := fmt.Fprintf(p.in, "cut %d\n", requests)
	testenv.NoError(p.t, err)
	line := p.next()
	testenv.Require(p.t, line == "off", "the power is not off: %s", line)
}

// settle makes the file what the cut has left of it, and says what that is.
func (p *power) settle(seed uint64, loss powercut.Loss) string {
	p.t.Helper()
	_, err := fmt.Fprintf(p.in, "settle %d %d %g\n", seed, loss.Unit, loss.Kept)
	testenv.NoError(p.t, err)
	line := p.next()
	testenv.Require(p.t, strings.HasPrefix(line, "settled"), "the disk was not settled: %s", line)
	p.end()
	return line
}

// end ends the child process, and with it the mount.
func (p *power) end() {
	_ = p.in.Close() // again: it is closed
	_ = p.cmd.Wait() // again: it has ended
}
