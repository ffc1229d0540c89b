// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

// GuestOptions say what a Guest is made of. Number, Init and Disk are required.
type GuestOptions struct {
	// Number is the guest's among those of its site, from 1 to 9.
	Number int
	// Init is a program on the host that is the guest's first process. It sees the host's files, read-only, and has
	// vec0, a link to the site, without an address.
	Init string
	// Disk is the size of its disk /dev/ubda in bytes: ext4, empty, and as long as nothing is written to it no room is
	// taken.
	Disk int64
	// Memory is how much the guest has, in MB; 1000 if zero.
	Memory int
	// Env are variables of the first process, each NAME=value, beside NAME and IP.
	Env []string
}

// Guest is a machine on a site that has a kernel of its own: a User-Mode Linux, with a clock, modules and a disk that
// are no others'. The others on the site reach it at its address, 10.77.0.21 and on, as soon as its first process has
// set that up. It is off until Boot.
type Guest struct {
	T        testing.TB
	Site     *Site
	Name, IP string
	// Dir is a folder of the host that the guest sees: its disk and what came from its console are in it.
	Dir string

	o     GuestOptions
	power context.CancelFunc // takes the power; nil while it is off
	off   chan struct{}      // closed when nothing is left of it
}

// GuestFolder makes a folder for guests, which see it: they have a /run of their own, and the host's files elsewhere.
// It is kept when the test fails and CORACLE_TEST_KEEP is set.
func GuestFolder(t testing.TB) string {
	t.Helper()
	return scratchIn(t, "/var/tmp", "coracle-guests-")
}

// NewGuest makes a guest with a folder below dir, which GuestFolder made, and switches it off when the test ends. Where
// there is no User-Mode Linux the test ends.
func (s *Site) NewGuest(dir string, o GuestOptions) *Guest {
	s.T.Helper()
	uml.Require(s.T, "mkfs.ext4")
	name := fmt.Sprintf("guest-%d", o.Number)
	g := &Guest{T: s.T, Site: s, Name: name, IP: fmt.Sprintf("10.77.0.%d", 20+o.Number), Dir: filepath.Join(dir, name), o: o}
	g.o.Memory = cmp.Or(g.o.Memory, 1000)
	tap := "tap" + g.Name
	for _, do := range []func() error{
		func() error { return os.Mkdir(g.Dir, 0o755) },
		func() error { return uml.MakeDisk(filepath.Join(g.Dir, "disk"), o.Disk) },
		func() error {
			return succeed(s.Command(s.T.Context(), "ip", "tuntap", "add", "dev", tap, "mode", "tap"))
		},
		func() error {
			return succeed(s.Command(s.T.Context(), "ip", "link", "set", tap, "master", "site", "up"))
		},
	} {
		testenv.NoError(s.T, do())
	}
	s.T.Cleanup(g.PowerOff)
	return g
}

func succeed(c *exec.Cmd) error {
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", c, err, out)
	}
	return nil
}

// Boot switches the guest on. env are further variables of its first process.
func (g *Guest) Boot(env ...string) {
	g.T.Helper()
	console, err := os.OpenFile(filepath.Join(g.Dir, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	testenv.NoError(g.T, err)
	defer console.Close()
	args := []string{
		"ubd0=" + filepath.Join(g.Dir, "disk"), fmt.Sprintf("vec0:transport=tap,ifname=tap%s,mac=02:00:00:00:01:%02x", g.Name, g.o.Number),
		"NAME=" + g.Name, "IP=" + g.IP,
	}
	ctx, cancel := context.WithCancel(context.Background())
	c, err := uml.Start(ctx, uml.StartOptions{
		Enter: g.Site.enter(), Memory: g.o.Memory, Init: g.o.Init, Dir: g.Dir, Args: slices.Concat(args, g.o.Env, env), Console: console,
	})
	if err != nil {
		cancel()
		g.T.Fatal(err)
	}
	off := make(chan struct{})
	go func() { _ = c.Wait(); close(off) }()
	g.power, g.off = cancel, off
}

// PowerOff takes the guest's power. What it had not synced is lost.
func (g *Guest) PowerOff() {
	if g.power == nil {
		return
	}
	g.power()
	<-g.off
	g.power = nil
}

// Running fails the test when the guest went down by itself.
func (g *Guest) Running() {
	g.T.Helper()
	select {
	case <-g.off:
		g.T.Fatalf("%s went down by itself:\n%s", g.Name, g.Console())
	default:
	}
}

// Console is the end of what came from the guest's console.
func (g *Guest) Console() string {
	text, _ := os.ReadFile(filepath.Join(g.Dir, "console"))
	return string(text[max(0, len(text)-4000):])
}
