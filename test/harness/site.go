// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"context"
	_ "embed" // for site.sh
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// OutsideIP is the address of what is on a site and no machine. NodeIP is that of a site's first machine.
const (
	OutsideIP = "10.77.0.1"
	NodeIP    = "10.77.0.2"
)

// maxMachines is how many machines a site has room for.
const maxMachines = 15

// Site is a network that machines are on: one Ethernet segment, in a network namespace that nothing leads out of.
// What a machine hears of another one can be cut, thinned or slowed.
type Site struct {
	T testing.TB
	// Needs are folders of the host that machines made from now on see too, where a machine has folders of its own
	// else.
	Needs []string

	holder   *exec.Cmd // its network namespace is the site
	dir      string    // with the embedded nft, from the first fault on
	machines []*Machine
	faults   map[link]fault
	delays   map[link]*delay
}

// link is what one machine sends to another one. The numbers are the machines'.
type link struct{ from, to int }

// fault is what happens to frames on a link.
type fault struct {
	cut            bool
	lossPercent    int
	bytesPerSecond int // 0: no limit
	noConnecting   bool
	udpPort        int // what loses and delays is for datagrams to this port alone; 0: for all
	delayed        bool
}

//go:embed site.sh
var siteScript string

// NewSite makes an empty site that lives until the test ends.
func NewSite(t testing.TB) *Site {
	t.Helper()
	testenv.Require(t, os.Geteuid() == 0, "a machine of namespaces needs root: run this as root")
	s := &Site{T: t, faults: map[link]fault{}, delays: map[link]*delay{}}
	t.Cleanup(s.destroy)
	self := testenv.Must(os.Executable())(t)
	s.holder = firstProcess(t, nil, nil, "unshare", "--net", "sh", "-c", siteScript, "site.sh", self)
	return s
}

func (s *Site) destroy() {
	s.stopDelays()
	if s.holder != nil {
		_ = s.holder.Process.Kill()
		_ = s.holder.Wait()
	}
	if s.dir != "" {
		testenv.Check(s.T, os.RemoveAll(s.dir), "clean up")
	}
}

// firstProcess starts a command that becomes this test binary, as a process that does nothing, and waits until it has.
func firstProcess(t testing.TB, env []string, files []*os.File, name string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(append(os.Environ(), initEnv+"=1"), env...)
	c.ExtraFiles = files
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := testenv.Must(c.StdoutPipe())(t)
	var complaint bytes.Buffer
	c.Stderr = &complaint
	testenv.NoError(t, c.Start(), "start a machine")
	ready := make([]byte, len("ready\n"))
	if _, err := out.Read(ready); err != nil {
		_ = c.Wait()
		t.Fatalf("the machine did not come up: %v\n%s", err, complaint.String())
	}
	return c
}

// Do runs f on a thread in the site's network, where no machine is: as something else that is plugged into it.
func (s *Site) Do(f func() error) error {
	// The thread must not end with this: machines die with the thread that made them.
	runtime.LockOSThread()
	back, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() { _ = back.Close() }() // only a handle
	there, err := netns.GetFromPid(s.holder.Process.Pid)
	if err == nil {
		defer func() { _ = there.Close() }()
		err = netns.Set(there)
	}
	if err == nil {
		err = f()
	}
	if err := netns.Set(back); err != nil {
		panic(fmt.Sprintf("a thread stays in a site's network: %v", err))
	}
	runtime.UnlockOSThread()
	return err
}

// NFT runs the embedded nft on the machine and returns what it printed.
func (m *Machine) NFT(args ...string) (string, error) { return m.Run(m.Site.nft(), args...) }

// NFT runs the embedded nft on the site's network and on no machine, and returns what it printed.
func (s *Site) NFT(args ...string) (string, error) {
	return Output(s.Command(context.Background(), s.nft(), args...))
}

// NFTIn is NFT in a network namespace that has a name on the machine.
func (m *Machine) NFTIn(namespace string, args ...string) (string, error) {
	return m.Run("nsenter", append([]string{"--net=/run/netns/" + namespace, "--", m.Site.nft()}, args...)...)
}

// Command prepares a program to run on the site's network and on no machine.
func (s *Site) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	command := slices.Concat(s.enter(), []string{name}, args)
	return exec.CommandContext(ctx, command[0], command[1:]...)
}

// enter is a command that runs another one on the site's network.
func (s *Site) enter() []string {
	return []string{"nsenter", "-t", fmt.Sprint(s.holder.Process.Pid), "-n", "--"}
}

// Cut drops everything that one machine sends to another one; the way back stays open.
func (s *Site) Cut(from, to *Machine) { s.change(from, to, func(f *fault) { f.cut = true }) }

// Split cuts both ways.
func (s *Site) Split(a, b *Machine) {
	s.Cut(a, b)
	s.Cut(b, a)
}

// CutOff cuts a machine off from all others at once, both ways.
func (s *Site) CutOff(m *Machine) {
	s.T.Helper()
	for _, other := range s.machines {
		for _, l := range []link{{m.Number, other.Number}, {other.Number, m.Number}} {
			if f := s.faults[l]; other != m {
				f.cut = true
				s.faults[l] = f
			}
		}
	}
	s.apply()
}

// Lose drops that part of the frames that one machine sends to another one, by chance.
func (s *Site) Lose(from, to *Machine, percent int) {
	s.change(from, to, func(f *fault) { f.lossPercent = percent })
}

// LoseDatagrams is Lose for UDP datagrams to one port.
func (s *Site) LoseDatagrams(from, to *Machine, port, percent int) {
	s.change(from, to, func(f *fault) { f.lossPercent, f.udpPort = percent, port })
}

// Slow drops what one machine sends to another one beyond that rate.
func (s *Site) Slow(from, to *Machine, bytesPerSecond int) {
	s.change(from, to, func(f *fault) { f.bytesPerSecond = bytesPerSecond })
}

// NoConnecting drops what would open a TCP connection from one machine to another one, as a router with network address
// translation before that one does. Connections that the other one opens work both ways.
func (s *Site) NoConnecting(from, to *Machine) {
	s.change(from, to, func(f *fault) { f.noConnecting = true })
}

// Heal makes all links whole.
func (s *Site) Heal() {
	s.T.Helper()
	clear(s.faults)
	s.stopDelays()
	s.apply()
}

func (s *Site) change(from, to *Machine, f func(*fault)) {
	s.T.Helper()
	l := link{from.Number, to.Number}
	now := s.faults[l]
	f(&now)
	s.faults[l] = now
	s.apply()
}

// apply makes the site's rules what the faults say.
func (s *Site) apply() {
	s.T.Helper()
	c := s.Command(context.Background(), s.nft(), "-f", "-")
	c.Stdin = strings.NewReader(rules(s.on(), s.faults))
	if out, err := c.CombinedOutput(); err != nil {
		s.T.Fatalf("the site's rules: %v\n%s", err, out)
	}
}

// on are the numbers of the machines that are switched on: the others have no link to the bridge.
func (s *Site) on() []int {
	var out []int
	for _, m := range s.machines {
		if m.pid != 0 {
			out = append(out, m.Number)
		}
	}
	return out
}

// rules are nftables rules at the place where the site's bridge gives frames to a machine. The sender is known by its
// link address, so that broadcasts are subject to faults too.
func rules(on []int, faults map[link]fault) string {
	var b strings.Builder
	b.WriteString("table netdev site {}\ndelete table netdev site\ntable netdev site {\n")
	for _, to := range on {
		fmt.Fprintf(&b, "chain to%d {\ntype filter hook egress device \"machine%d\" priority 0;\n", to, to)
		for _, from := range on {
			f, sender := faults[link{from, to}], fmt.Sprintf("ether saddr %s", LinkAddress(from))
			if f.cut {
				fmt.Fprintf(&b, "%s drop\n", sender)
			}
			if f.noConnecting {
				fmt.Fprintf(&b, "%s tcp flags & (syn|ack) == syn drop\n", sender)
			}
			some := sender
			if f.udpPort > 0 {
				some += fmt.Sprintf(" udp dport %d", f.udpPort)
			}
			switch {
			case f.lossPercent >= 100:
				fmt.Fprintf(&b, "%s drop\n", some)
			case f.lossPercent > 0:
				fmt.Fprintf(&b, "%s numgen random mod 100 < %d drop\n", some, f.lossPercent)
			}
			if f.delayed { // a copy comes later
				fmt.Fprintf(&b, "%s meta mark != %d drop\n", some, delayedMark)
			}
			if f.bytesPerSecond > 0 {
				fmt.Fprintf(&b, "%s limit rate over %d bytes/second burst %d bytes drop\n", sender, f.bytesPerSecond, max(f.bytesPerSecond/4, 64<<10))
			}
		}
		b.WriteString("}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// LinkAddress is the Ethernet address of the machine with that number.
func LinkAddress(number int) string { return fmt.Sprintf("02:00:00:00:00:%02x", number) }

// nft unpacks the embedded nft when it is wanted first, and returns its path.
func (s *Site) nft() string {
	s.T.Helper()
	if s.dir == "" {
		dir := testenv.Must(os.MkdirTemp("", "coracle-site-"))(s.T)
		s.dir = dir
		if err := embedded.UnpackNFT(filepath.Join(dir, "bin")); err != nil {
			testenv.Missing(s.T, testenv.Embedded, "%v", err)
		}
	}
	return filepath.Join(s.dir, "bin", "nft")
}
