// SPDX-License-Identifier: Apache-2.0

package uml

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the kernel hands to its first process.
const (
	testVar    = "CORACLE_GUEST_TEST"
	folderVar  = "CORACLE_GUEST_FOLDER"
	modulesVar = "CORACLE_GUEST_MODULES"
	ownVar     = "CORACLE_GUEST_OWN"
)

// Inside says that this process runs in a guest.
func Inside() bool { return os.Getenv(testVar) != "" }

// Main is what TestMain calls; run is what it would have called otherwise.
func Main(m *testing.M, run func(*testing.M) int) int {
	if !Inside() || os.Getpid() != 1 {
		return run(m)
	}
	how := "0"
	if err := first(); err != nil {
		how = err.Error()
	}
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err == nil {
		fmt.Fprintln(console, "\n"+verdict+how)
		_ = unix.IoctlSetInt(int(console.Fd()), unix.TCSBRK, 1) // wait until it is out
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	return 1
}

// first is the first process of the guest.
func first() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"},
	} {
		// Busy: the kernel has done it.
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the console: %w", err)
	}
	if dir, names, ok := strings.Cut(os.Getenv(modulesVar), ":"); ok {
		if err := load(dir, strings.Split(names, ",")); err != nil {
			return err
		}
	}
	if lists := os.Getenv(ownVar); lists != "" {
		if err := loadOwn(strings.Split(lists, ":")); err != nil {
			return err
		}
	}
	if err := remember(connections); err != nil {
		return err
	}
	// Verbose: Run looks for each part's end.
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+os.Getenv(testVar)+"$", "-test.count=1", "-test.v")
	cmd.Dir = os.Getenv(folderVar)
	cmd.Env = append(os.Environ(), "TMPDIR=/run", "HOME=/run")
	cmd.Stdout, cmd.Stderr = console, console
	// Orphans are not taken away: they end with the machine.
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the test: %w", err)
	}
	return nil
}

// connections are how many the kernel shall track: by itself a machine of this size takes 4,096, which include those
// that ended in the last two minutes, and with one more it drops what begins. A network namespace may not raise it, so
// that the Service proxy in one does not.
const connections = 1 << 17

// remember has the kernel track so many connections, if it tracks any.
func remember(n int) error {
	f, err := os.OpenFile("/proc/sys/net/netfilter/nf_conntrack_max", os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		_, err = fmt.Fprint(f, n)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("have more connections tracked: %w", err)
	}
	return nil
}

// Load loads modules of the package's kernel, each after those that it needs, while the test runs in the guest: for one
// that begins without them.
func Load(t testing.TB, names ...string) {
	t.Helper()
	dir, err := modules()
	if err == nil {
		err = load(dir, names)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// load loads modules, each after those that it needs.
func load(dir string, names []string) error {
	files, err := filesOf(dir, names)
	if err != nil {
		return err
	}
	return insertAll(files)
}

// loadOwn loads the modules of lists of their own.
func loadOwn(lists []string) error {
	files, err := ownFiles(lists)
	if err != nil {
		return err
	}
	return insertAll(files)
}

func insertAll(files []string) error {
	for _, file := range files {
		if err := insert(file); err != nil {
			return fmt.Errorf("load the module %s: %w", file, err)
		}
	}
	return nil
}

func insert(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := unix.InitModule(data, ""); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
