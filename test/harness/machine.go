// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"context"
	_ "embed" // for machine.sh
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// initEnv marks a re-executed test binary that is to be the first process of a machine.
const initEnv = "CORACLE_TEST_MACHINE_INIT"

// Main runs the tests, or is FirstProcess. Call it from TestMain.
func Main(m *testing.M) {
	FirstProcess()
	if err := enoughInotify(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	code := m.Run()
	removeBox()
	os.Exit(code)
}

// FirstProcess returns, unless this process was started to be a machine's first one: then it reaps orphans until it is
// killed. A program that makes machines calls it before anything else.
func FirstProcess() {
	if os.Getenv(initEnv) == "" {
		return
	}
	fmt.Println("ready")
	for {
		if _, err := syscall.Wait4(-1, nil, 0, nil); errors.Is(err, syscall.ECHILD) {
			time.Sleep(50 * time.Millisecond) // nothing to reap: there is no event to wait for
		}
	}
}

// Machine is one host made of namespaces.
type Machine struct {
	T      testing.TB
	Site   *Site
	Number int    // on its site, from 1 on
	IP     string // of its only link
	Dir    string // scratch on a real disk: data directories, logs
	Env    []string

	init    *exec.Cmd
	pid     int // of the first process, as this process sees it; 0: the machine is off
	cgroups []string
	network atomic.Pointer[os.File] // its network namespace, nil while it is off: for Dial, which may run meanwhile
}

//go:embed machine.sh
var machineScript string

// NewMachine makes a machine, alone on a site, that lives until the test ends.
func NewMachine(t testing.TB) *Machine {
	t.Helper()
	return NewSite(t).NewMachine()
}

// NewMachine adds a machine to the site.
func (s *Site) NewMachine() *Machine {
	t := s.T
	t.Helper()
	number := len(s.machines) + 1
	testenv.Require(t, number <= maxMachines, "a site has room for %d machines", maxMachines)
	m := &Machine{T: t, Site: s, Number: number, IP: fmt.Sprintf("10.77.0.%d", number+1), Dir: scratch(t)}
	t.Cleanup(m.destroy)
	s.machines = append(s.machines, m)
	m.boot()
	return m
}

// boot makes the machine's namespaces and its first process.
func (m *Machine) boot() {
	t, s := m.T, m.Site
	t.Helper()
	m.makeCgroups()
	network := testenv.Must(os.Open(fmt.Sprintf("/proc/%d/ns/net", s.holder.Process.Pid)))(t)
	defer network.Close()
	join := "set -eu\n"
	for _, c := range m.cgroups {
		join += "echo $$ > " + c + "/cgroup.procs\n"
	}
	join += `exec unshare --cgroup --net --mount --pid --fork --kill-child --mount-proc sh -c "$SETUP" machine.sh "$@"`
	needed := m.needed()
	args := append([]string{"-c", join, "join", m.Dir, strconv.Itoa(m.Number)}, needed...)
	m.init = firstProcess(t, []string{"SETUP=" + machineScript}, []*os.File{network}, "sh", args...)
	m.pid = onlyChild(t, m.init.Process.Pid, nil)
	own := testenv.Must(os.Open(fmt.Sprintf("/proc/%d/ns/net", m.pid)))(t)
	m.network.Store(own)
}

// needed is this program, and the folders of the host that the machine has to see, wherever they are.
func (m *Machine) needed() []string {
	self := testenv.Must(os.Executable())(m.T)
	out := append([]string{self, filepath.Dir(self), os.TempDir()}, m.Site.Needs...)
	if bin := os.Getenv("CORACLE_BIN"); bin != "" {
		out = append(out, filepath.Dir(m.Coracle()))
	}
	return out
}

// scratch returns a directory that outlives the test only when the test fails and CORACLE_TEST_KEEP is set.
func scratch(t testing.TB) string { return scratchIn(t, os.Getenv("CORACLE_TEST_DIR"), "coracle-e2e-") }

// scratchIn is scratch in a folder, under a name that begins so.
func scratchIn(t testing.TB, folder, prefix string) string {
	t.Helper()
	dir := testenv.Must(os.MkdirTemp(folder, prefix))(t)
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("CORACLE_TEST_KEEP") != "" {
			t.Logf("kept %s", dir)
			return
		}
		testenv.Check(t, os.RemoveAll(dir), "clean up")
	})
	return dir
}

// makeCgroups makes one cgroup of this machine's own in each mounted hierarchy.
func (m *Machine) makeCgroups() {
	name := fmt.Sprintf("coracle-e2e-%d-%d", os.Getpid(), time.Now().UnixNano()%1e9)
	mounts := testenv.Must(os.ReadFile("/proc/self/mounts"))(m.T)
	v1 := strings.Contains(string(mounts), " cgroup ")
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 4 || (f[2] != "cgroup" && (f[2] != "cgroup2" || v1)) {
			continue
		}
		dir := filepath.Join(f[1], name)
		testenv.NoError(m.T, os.Mkdir(dir, 0o755))
		m.cgroups = append(m.cgroups, dir)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if v, err := os.ReadFile(filepath.Join(f[1], file)); err == nil && v1 {
				testenv.NoError(m.T, os.WriteFile(filepath.Join(dir, file), v, 0o644))
			}
		}
	}
}

// destroy ends every process of the machine and removes its cgroups.
func (m *Machine) destroy() {
	if n := m.network.Swap(nil); n != nil {
		_ = n.Close()
	}
	if m.init != nil && m.init.Process != nil {
		if m.pid > 0 { // the first process of a pid namespace takes all others with it
			_ = syscall.Kill(m.pid, syscall.SIGKILL)
		}
		_ = m.init.Process.Kill()
		_ = m.init.Wait()
	}
	m.init, m.pid = nil, 0
	for _, c := range m.cgroups {
		Eventually(m.T, Longer, "remove cgroup "+c, func() error { return removeCgroup(c) })
	}
	m.cgroups = nil
}

// removeCgroup removes a cgroup and those below it, deepest first.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

// Command prepares a program to run on the machine, in its cgroup and with a PATH that has neither nft nor iptables.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	const enter = `for c in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/init/cgroup.procs; do
  [ ! -w "$c" ] || case $c in */init/*|*/kubepods*) [ ! -e /sys/fs/cgroup/cgroup.controllers ] || echo 0 > "$c";; *) [ -e /sys/fs/cgroup/cgroup.controllers ] || echo 0 > "$c";; esac
done
exec setpriv --bounding-set=-sys_time -- "$@"` // there is one clock for all machines, and it is the host's
	full := append([]string{"-t", strconv.Itoa(m.pid), "-m", "-n", "-p", "-C", "--", "/bin/sh", "-c", enter, "enter", name}, args...)
	c := exec.CommandContext(ctx, "nsenter", full...)
	c.Cancel = func() error { // nsenter waits for the program that it started, and would leave it behind
		for _, child := range children(c.Process.Pid) {
			_ = syscall.Kill(child, syscall.SIGKILL)
		}
		return c.Process.Kill()
	}
	c.Env = append([]string{"PATH=/usr/bin:/bin", "HOME=" + m.Dir, "TMPDIR=" + os.TempDir()}, m.Env...)
	return c
}

// Outside prepares a program to run in the network outside the machine.
func (m *Machine) Outside(ctx context.Context, name string, args ...string) *exec.Cmd {
	return m.Command(ctx, "nsenter", append([]string{"--net=/run/netns/outside", "--", name}, args...)...)
}

// Run runs a program on the machine and returns what it printed; err holds what it complained of.
func (m *Machine) Run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return Output(m.Command(ctx, name, args...))
}

// NoProcess returns an error that lists the processes of the machine whose command line matches a pattern of grep. The
// pattern must not match itself: "[a]gent".
func (m *Machine) NoProcess(pattern string) error {
	out, err := m.Run("/bin/busybox", "sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2> /dev/null | grep '"+pattern+"' || true; done")
	if err == nil && strings.TrimSpace(out) != "" {
		err = fmt.Errorf("there are\n%s", out)
	}
	return err
}

// Output runs c and returns its standard output, and an error that quotes its standard error.
func Output(c *exec.Cmd) (string, error) {
	var out, complaint bytes.Buffer
	c.Stdout, c.Stderr = &out, &complaint
	c.WaitDelay = time.Minute // for what it printed to be read, once it has ended
	if err := c.Run(); err != nil {
		return out.String(), &ExitError{Err: err, Stderr: complaint.String(), Args: c.Args}
	}
	return out.String(), nil
}

// ExitError is a program that ended badly, with what it said.
type ExitError struct {
	Err    error
	Stderr string
	Args   []string
}

func (e *ExitError) Error() string {
	last := e.Args
	if len(last) > 4 {
		last = last[len(last)-4:]
	}
	return fmt.Sprintf("…%s: %v: %s", strings.Join(last, " "), e.Err, strings.TrimSpace(e.Stderr))
}

func (e *ExitError) Unwrap() error { return e.Err }

// onlyChild waits for the one child of pid and returns its pid. It is 0 if pid has ended before that, as ended tells:
// a child that ends at once may not have been seen.
func onlyChild(t testing.TB, pid int, ended <-chan struct{}) int {
	t.Helper()
	child := 0
	Eventually(t, 3*time.Minute, "a child process", func() error {
		found := children(pid)
		if len(found) == 1 {
			child = found[0]
			return nil
		}
		select {
		case <-ended:
			return nil
		default:
			return fmt.Errorf("process %d has %d children", pid, len(found))
		}
	})
	return child
}

// children lists the processes that pid started and that have not ended.
func children(pid int) []int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var out []int
	for word := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(word); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// Eventually is testenv's.
func Eventually(t testing.TB, within time.Duration, what string, f func() error) {
	t.Helper()
	testenv.Eventually(t, within, what, f)
}

// OnlyIPv6 takes the machine's addresses away and gives it one of IPv6, in a network of 64 bits whose first address
// leads out.
func (m *Machine) OnlyIPv6(ip string) {
	m.T.Helper()
	m.replaceAddress(ip, `ip address add "$1/64" dev eth0 nodad
ip -6 route replace default via "${1%:*}:1" dev eth0`)
}

// Readdress takes the machine's address away and gives it another one, in a network of 24 bits whose first address
// leads out.
func (m *Machine) Readdress(ip string) {
	m.T.Helper()
	m.replaceAddress(ip, `ip address add "$1/24" dev eth0
ip route replace default via "${1%.*}.1" dev eth0`)
}

func (m *Machine) replaceAddress(ip, how string) {
	m.T.Helper()
	script := "set -e\nip address flush dev eth0 scope global\n" + how
	if out, err := m.Run("sh", "-c", script, "readdress", ip); err != nil {
		m.T.Fatalf("give machine %d the address %s: %v\n%s", m.Number, ip, err, out)
	}
	m.IP = ip
}
