// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// inContainer makes this test program print what a filtered system call returns.
const inContainer = "CORACLE_TEST_IN_CONTAINER"

// TestMain is also the containers' program.
func TestMain(m *testing.M) {
	if os.Getenv(inContainer) != "" {
		_, _, errno := unix.Syscall(unix.SYS_MKDIRAT, ^uintptr(0), 0, 0)
		fmt.Printf("mkdirat: %d\n", errno)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// containers runs containers with the embedded runc and a filter that makes mkdirat(2) fail.
type containers struct {
	t                  *testing.T
	runc, root, bundle string
	made               int
}

func newContainers(t *testing.T) *containers {
	t.Helper()
	testenv.RequireRoot(t, "it makes containers")
	d := unpackOwn(t)
	c := &containers{t: t, runc: d.File("runc"), root: t.TempDir(), bundle: t.TempDir()}
	testenv.NoError(t, os.Mkdir(filepath.Join(c.bundle, "rootfs"), 0o755))
	return c
}

// writeSpec writes the bundle of a container in which mkdirat fails with errno.
func (c *containers) writeSpec(errno uint) {
	c.t.Helper()
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/program", Type: "bind", Source: testenv.Must(os.Executable())(c.t), Options: []string{"bind", "ro"}},
	}
	for _, libraries := range []string{"/lib", "/lib64", "/usr"} { // a program with the race detector is linked with some
		if _, err := os.Stat(libraries); err == nil {
			mounts = append(mounts, specs.Mount{
				Destination: libraries, Type: "bind", Source: libraries, Options: []string{"rbind", "ro"},
			})
		}
	}
	spec := specs.Spec{
		Version: "1.2.0",
		Root:    &specs.Root{Path: "rootfs"},
		Mounts:  mounts,
		Process: &specs.Process{
			Args: []string{"/program"}, Env: []string{inContainer + "=1"}, Cwd: "/",
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}},
			Seccomp: &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow,
				Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
				Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno}},
			},
		},
	}
	data := testenv.Must(json.Marshal(spec))(c.t)
	testenv.NoError(c.t, os.WriteFile(filepath.Join(c.bundle, "config.json"), data, 0o600))
}

// run runs a container in which mkdirat must fail with errno.
func (c *containers) run(errno uint) {
	c.t.Helper()
	c.writeSpec(errno)
	c.runSpec(errno)
}

// runSpec runs a container as the bundle has it. Its mkdirat must fail with errno.
func (c *containers) runSpec(errno uint) {
	c.t.Helper()
	out, err := c.command().CombinedOutput()
	testenv.NoError(c.t, err, "%s", out)
	testenv.True(c.t, strings.Contains(string(out), fmt.Sprintf("mkdirat: %d\n", errno)), "want %d:\n%s", errno, out)
}

// command returns a command that runs one more container.
func (c *containers) command() *exec.Cmd {
	c.made++
	cmd := exec.Command(c.runc, "--root", c.root, "run", fmt.Sprintf("coracle-test-%d-%d", os.Getpid(), c.made))
	cmd.Dir = c.bundle
	return cmd
}

// filters lists the files of runc's cache.
func (c *containers) filters() []string {
	c.t.Helper()
	return testenv.Must(filepath.Glob(filepath.Join(c.root, "seccomp:*")))(c.t)
}

// TestRuncKeepsCompiledFilters checks packaging/runc.patch: containers with the same filter share a file of the cache,
// others do not, and a damaged file is replaced.
func TestRuncKeepsCompiledFilters(t *testing.T) {
	c := newContainers(t)
	c.run(71)
	c.run(71)
	testenv.True(t, len(c.filters()) == 1, "two containers with one filter left %q", c.filters())
	first := c.filters()[0]
	c.run(72)
	c.run(71)
	testenv.True(t, len(c.filters()) == 2, "containers with two filters left %q", c.filters())
	want := testenv.Must(os.ReadFile(first))(t)
	for _, second := range c.filters() { // what a file has is what is loaded
		testenv.NoError(t, os.WriteFile(second, want, 0o600))
	}
	c.writeSpec(72)
	c.runSpec(71)

	changed := slices.Clone(want)
	changed[len(changed)-1]++
	for name, damage := range map[string]func() error{
		"an empty file":      func() error { return os.WriteFile(first, nil, 0o600) },
		"half a file":        func() error { return os.WriteFile(first, want[:len(want)/2], 0o600) },
		"a changed byte":     func() error { return os.WriteFile(first, changed, 0o600) },
		"a file too long":    func() error { return os.Truncate(first, 1<<30) },
		"a file for others":  func() error { return os.Chmod(first, 0o622) },
		"a file of others":   func() error { return os.Chown(first, 1, 1) },
		"a FIFO":             func() error { return errors.Join(os.Remove(first), unix.Mkfifo(first, 0o600)) },
		"a link to a filter": func() error { return errors.Join(os.Rename(first, first+"-"), os.Symlink(first+"-", first)) },
	} {
		testenv.NoError(t, damage())
		c.run(71)
		info := testenv.Must(os.Lstat(first))(t)
		testenv.True(t, info.Mode() == 0o600 && slices.Equal(testenv.Must(os.ReadFile(first))(t), want), "%s stays: %v", name, info.Mode())
	}
}

// TestFilterThatTheKernelRefuses: it is not kept, and the error says what has failed.
func TestFilterThatTheKernelRefuses(t *testing.T) {
	c := newContainers(t)
	c.writeSpec(71)
	file := filepath.Join(c.bundle, "config.json")
	var spec specs.Spec
	testenv.NoError(t, json.Unmarshal(testenv.Must(os.ReadFile(file))(t), &spec))
	for i := range uint64(5000) { // more than 4096 instructions
		spec.Linux.Seccomp.Syscalls = append(spec.Linux.Seccomp.Syscalls, specs.LinuxSyscall{
			Names: []string{"keyctl"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Value: i * 7919, Op: specs.OpEqualTo}},
		})
	}
	testenv.NoError(t, os.WriteFile(file, testenv.Must(json.Marshal(spec))(t), 0o600))
	out, err := c.command().CombinedOutput()
	testenv.True(t, err != nil, "such a filter was loaded")
	testenv.Contains(t, string(out), "error loading seccomp filter into kernel: error loading seccomp filter: invalid argument", "the error")
	testenv.True(t, len(c.filters()) == 0, "it is kept: %q", c.filters())
}

// TestCacheOfFiltersIsBounded: users can ask for any number of filters, by the capabilities of their pods.
func TestCacheOfFiltersIsBounded(t *testing.T) {
	c := newContainers(t)
	const bound = 64
	for i := range bound {
		testenv.NoError(t, os.WriteFile(filepath.Join(c.root, fmt.Sprintf("seccomp:%d", i)), nil, 0o600))
	}
	c.run(71)
	testenv.True(t, len(c.filters()) == 1, "%d files stay", len(c.filters())-1)
}
