// SPDX-License-Identifier: Apache-2.0

// Package netns lets root tests play with the network without touching the host's: the test binary runs again in
// network and mount namespaces of its own, and makes further network namespaces that stand for pods and for machines
// outside. When the process ends the kernel removes everything. The nft that such a test runs is the embedded one.
//
// It is for tests only.
package netns

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/internal/netlinkutil"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const marker = "CORACLE_NSTEST"

// Main runs m inside new namespaces when the process is root, plainly otherwise. TestMain passes its result to os.Exit.
func Main(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	if os.Getenv(marker) != "" {
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, "netns:", err)
			return 1
		}
		return m.Run()
	}
	path, remove, err := embeddedNFT()
	if err != nil {
		fmt.Fprintln(os.Stderr, "netns:", err)
		return 1
	}
	defer remove()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), marker+"=1", "PATH="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The death signal follows the thread that forked, so this one has to stay.
	runtime.LockOSThread()
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "netns:", err)
		return 1
	}
	return 0
}

// embeddedNFT unpacks the embedded nft, where this tree has built it, and returns a PATH on which it is the first one.
func embeddedNFT() (path string, remove func(), err error) {
	path = os.Getenv("PATH")
	dir, err := os.MkdirTemp("", "coracle-nft-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	bin := filepath.Join(dir, "bin")
	err = embedded.UnpackNFT(bin)
	switch {
	case errors.Is(err, embedded.ErrNotEmbedded):
		return path, remove, nil
	case err != nil:
		remove()
		return "", nil, err
	}
	return bin + string(os.PathListSeparator) + path, remove, nil
}

func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("setting loopback up: %w", err)
	}
	return nil
}

// Require ends a test that needs the namespaces when there are none.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv(marker) == "" {
		testenv.Missing(t, testenv.Root, "it makes network namespaces")
	}
}

// RequireNFT is Require for a test that needs nft too: the embedded one, or else one that the machine happens to have.
func RequireNFT(t testing.TB) {
	t.Helper()
	Require(t)
	if _, err := exec.LookPath("nft"); err != nil {
		testenv.Missing(t, testenv.Embedded, "it runs nft, and the machine has none either (make embedded)")
	}
}

// NS is a network namespace, bound to a file.
type NS struct {
	Path string
	h    vishnetns.NsHandle
}

// New makes an empty network namespace that lives until the test ends or Close.
func New(t testing.TB) *NS {
	t.Helper()
	Require(t)
	ns := &NS{Path: filepath.Join(t.TempDir(), "netns")}
	testenv.NoError(t, os.WriteFile(ns.Path, nil, 0o600))
	err := netlinkutil.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), ns.Path, "", unix.MS_BIND, "")
	})
	if err == nil {
		ns.h, err = vishnetns.GetFromPath(ns.Path)
	}
	testenv.NoError(t, err, "making a network namespace")
	t.Cleanup(ns.Close)
	return ns
}

// Close lets go of the namespace; with its last process it ends.
func (ns *NS) Close() {
	if ns.h.IsOpen() {
		_ = ns.h.Close()
		_ = unix.Unmount(ns.Path, unix.MNT_DETACH)
		_ = os.Remove(ns.Path)
	}
}

// Do runs f on a thread inside the namespace. What f starts on other goroutines is not in it. A test that fails in f
// has failed, and Do returns an error.
func (ns *NS) Do(f func() error) error {
	return netlinkutil.Do(func() error {
		if err := vishnetns.Set(ns.h); err != nil {
			return err
		}
		return f()
	})
}

// Link joins the process's own namespace (device hostDev) and ns (device nsDev) with a veth pair; addresses are in
// CIDR form and may be empty.
func (ns *NS) Link(t testing.TB, hostDev, nsDev string, hostAddrs, nsAddrs []string) {
	t.Helper()
	Connect(t, Own{}, hostDev, hostAddrs, ns, nsDev, nsAddrs)
}

// Connect joins two namespaces with a veth pair, as Link does.
func Connect(t testing.TB, a Doer, aDev string, aAddrs []string, b *NS, bDev string, bAddrs []string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aDev
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: bDev, PeerTxQLen: -1, PeerNamespace: netlink.NsFd(int(b.h))}
	testenv.NoError(t, a.Do(func() error { return netlink.LinkAdd(veth) }), "making a veth pair")
	t.Cleanup(func() {
		_ = a.Do(func() error {
			l, err := netlink.LinkByName(aDev)
			if err == nil {
				err = netlink.LinkDel(l)
			}
			return err
		})
	})
	for _, err := range []error{
		a.Do(func() error { return errors.Join(setup("lo", nil), setup(aDev, aAddrs)) }),
		b.Do(func() error { return errors.Join(setup("lo", nil), setup(bDev, bAddrs)) }),
	} {
		testenv.NoError(t, err)
	}
	testenv.Eventually(t, 2*time.Minute, "the addresses of "+aDev+" and "+bDev+" are local", func() error {
		return errors.Join(a.Do(func() error { return local(aAddrs) }), b.Do(func() error { return local(bAddrs) }))
	})
}

// local returns an error unless packets to all these addresses stay in the calling thread's namespace. The kernel adds
// the route of an IPv6 address after the address itself, in work of its own. Until then a socket can be bound to the
// address, and what is sent to it takes the default route.
func local(addrs []string) error {
	for _, a := range addrs {
		ip, _, err := net.ParseCIDR(a)
		if err != nil {
			return err
		}
		routes, err := netlink.RouteGet(ip)
		if err != nil {
			return fmt.Errorf("finding the route to %s: %w", ip, err)
		}
		if len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return fmt.Errorf("%s is not local: %v", ip, routes)
		}
	}
	return nil
}

func setup(dev string, addrs []string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("adding %s to %s: %w", a, dev, err)
		}
	}
	return netlink.LinkSetUp(l)
}

// AddRoute adds a route to dst by gw in the calling thread's namespace; use it alone or inside Do.
func AddRoute(dst, gw string) error {
	_, n, err := net.ParseCIDR(dst)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: n, Gw: net.ParseIP(gw)})
}

// AddAddress gives a device of the calling thread's namespace an address, in CIDR form; use it alone or inside Do.
func AddAddress(dev, addr string) error { return setup(dev, []string{addr}) }

// Doer runs f inside a namespace: NS does.
type Doer interface{ Do(f func() error) error }

// In is a Doer from a function.
type In func(f func() error) error

// Do implements Doer.
func (in In) Do(f func() error) error { return in(f) }

// Own is the process's own namespace.
type Own struct{}

// Do implements Doer.
func (Own) Do(f func() error) error { return f() }

// Serve listens inside a namespace until the test ends and answers each connection with a line: the name and the
// address that the connection comes from.
func Serve(t testing.TB, in Doer, name, network, addr string) {
	t.Helper()
	var l net.Listener
	testenv.NoError(t, in.Do(func() (err error) { l, err = net.Listen(network, addr); return err }))
	serve(t, l, name)
}

// serve answers what comes to a listener until the test ends.
func serve(t testing.TB, l net.Listener, name string) {
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s %s\n", name, host)
			c.Close()
		}
	}()
}

// Ask connects from inside a namespace and returns the line of Serve. It takes two seconds for no answer: who
// knows that there has to be one asks with patience, or again.
func Ask(in Doer, addr string) (answer string, err error) { return AskFor(in, addr, 2*time.Second) }

// AskFor is Ask with the patience of the caller.
func AskFor(in Doer, addr string, patience time.Duration) (answer string, err error) {
	err = in.Do(func() error {
		c, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		line, err := bufio.NewReader(c).ReadString('\n')
		answer = strings.TrimSpace(line)
		return err
	})
	return answer, err
}
