// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

// machine is a network namespace with one link to another one.
type machine struct {
	packets net.PacketConn
	link    net.Interface
}

// twoMachines are joined by a cable. Each has the port 6443, of one family.
func twoMachines(t *testing.T, family string) (a, b machine) {
	t.Helper()
	near, far := netns.New(t), netns.New(t)
	netns.Connect(t, near, "a", []string{"10.99.0.1/24"}, far, "b", []string{"10.99.0.2/24"})
	open := func(ns *netns.NS, name string) machine {
		t.Helper()
		var l netlink.Link
		testenv.NoError(t, ns.Do(func() (err error) { l, err = netlink.LinkByName(name); return err }))
		// A number for its name, since names are looked up wherever the sender's thread is.
		link := net.Interface{Index: l.Attrs().Index, Name: strconv.Itoa(l.Attrs().Index), Flags: net.FlagUp | net.FlagMulticast}
		return machine{netns.ListenPacket(t, ns, family, ":6443"), link}
	}
	return open(near, "a"), open(far, "b")
}

func (m machine) links() ([]net.Interface, error) { return []net.Interface{m.link}, nil }

// TestServerIsFoundByMulticast: a machine that knows no member finds a server on its network, by real sockets of either
// family.
func TestServerIsFoundByMulticast(t *testing.T) {
	for _, family := range []string{"udp4", "udp6"} {
		t.Run(family, func(t *testing.T) { findsServer(t, family) })
	}
}

func findsServer(t *testing.T, family string) {
	here, there := twoMachines(t, family)
	keys, strange := newKeys(t), newKeys(t)
	server := netip.MustParseAddrPort("10.99.0.2:6443")
	streams := newNetwork().host(server)
	m := testenv.Must(New(Options{
		Name: "server", Address: server, Packets: there.packets, Streams: streams, Keys: keys, Links: there.links,
		Meta: Meta{Role: RoleServer, API: []netip.AddrPort{server}}, Logger: slog.New(slog.DiscardHandler),
	}))(t)
	defer testenv.Run(t, m.Run)()
	testenv.Eventually(t, 2*time.Minute, "the server is found", func() error { // an IPv6 address is tried out for a second first
		found, err := Search(t.Context(), SearchOptions{Packets: here.packets, Keys: keys, Links: here.links})
		if err == nil && !slices.Equal(found, []netip.AddrPort{server}) {
			err = errors.New("not found")
		}
		return err
	})
	found, err := Search(t.Context(), SearchOptions{Packets: here.packets, Keys: strange, Links: here.links})
	testenv.False(t, err != nil || len(found) > 0, "without the key: %v, %v", found, err)
}
