// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/klog/v2"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/services"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// bed is a node, which is the process's own namespace, with two pods and a machine outside. What the rules would do is
// not here: pods answer by way of the node anyway.
type bed struct {
	outside  *netns.NS
	proxier  *Proxier
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
	calls    *spy
	// scheduler is for Services that name none; empty is the package's.
	scheduler string
	log       klog.Logger // klog's own when left zero
	// trouble is what every sync is to fail with.
	trouble error
}

func newBed(t *testing.T) *bed {
	b := &bed{outside: netns.NewOutside(t), services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{}}
	for ip, ns := range netns.NewPods(t) {
		netns.Serve(t, ns, ip, "tcp", ":8080")
		netns.Echo(t, ns, ip, "tcp", ":9090")
		netns.Echo(t, ns, ip, "udp", ":9090")
	}
	netns.Route(t, b.outside, nodeAddr, "10.43.0.0/16")
	netns.Route(t, b.outside, nodeAddr6, "fd43::/112")
	return b
}

// start is a proxier that knows nothing yet, as after a restart.
func (b *bed) start(t *testing.T) {
	t.Helper()
	if b.log.GetSink() == nil {
		b.log = klog.Background()
	}
	p := testenv.Must(New(Options{
		NodeName: "n1", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")},
		NodePortAddresses: []string{nodeAddr + "/32", nodeAddr6 + "/128"}, Scheduler: b.scheduler, Logger: b.log,
		nft: func(f knftables.Family) (knftables.Interface, error) {
			return knftables.NewFake(f, nft.IPVSTable), nil
		},
	}))(t)
	t.Cleanup(p.Close)
	b.proxier, b.calls = p, &spy{Table: p.families[0].apply.table}
	p.families[0].apply.table = b.calls
	testenv.NoError(t, p.Prepare())
	for name := range b.services {
		p.OnServiceUpdate(nil, b.services[name])
		p.OnEndpointSlice(b.slices[name], false)
	}
}

func (b *bed) sync(t *testing.T) {
	t.Helper()
	if err := b.proxier.Sync(t.Context(), false); !errors.Is(err, b.trouble) {
		t.Fatalf("the error is %v, want %v", err, b.trouble)
	}
}

// service adds or changes one with its endpoints, which are pods by their index, and syncs.
func (b *bed) service(t *testing.T, name string, change func(*corev1.Service), port int32, pods ...int) {
	t.Helper()
	b.setService(name, change, port, pods...)
	b.sync(t)
}

func (b *bed) setService(name string, change func(*corev1.Service), port int32, pods ...int) {
	svc := services.New(name, []string{clusterIP}, corev1.ServicePort{Name: "x", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080})
	svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyCluster
	if change != nil {
		change(svc)
	}
	b.proxier.OnServiceUpdate(b.services[name], svc)
	b.services[name] = svc
	var ips []string
	for _, i := range pods {
		ips = append(ips, podAddrs[i])
	}
	slice := services.Slice(svc, "n1", port, ips...)
	b.slices[name] = slice
	b.proxier.OnEndpointSlice(slice, false)
}

func (b *bed) delete(name string) {
	b.proxier.OnServiceUpdate(b.services[name], nil)
	b.proxier.OnEndpointSlice(b.slices[name], true)
	delete(b.services, name)
	delete(b.slices, name)
}

// spy counts what changes the kernel.
type spy struct {
	Table
	changes []string
	refuses Key // is not added
}

var errRefused = errors.New("refused")

func (s *spy) note(format string, args ...any) {
	s.changes = append(s.changes, fmt.Sprintf(format, args...))
}

func (s *spy) AddServer(k Key, v Server) error {
	s.note("add %s", k)
	if k == s.refuses {
		return fmt.Errorf("adding %s: %w", k, errRefused)
	}
	return s.Table.AddServer(k, v)
}

func (s *spy) UpdateServer(k Key, v Server) error {
	s.note("update %s", k)
	return s.Table.UpdateServer(k, v)
}

func (s *spy) DeleteServer(k Key) error { s.note("delete %s", k); return s.Table.DeleteServer(k) }

func (s *spy) AddReal(k Key, a netip.AddrPort) error {
	s.note("add %s to %s", a, k)
	return s.Table.AddReal(k, a)
}

func (s *spy) SetWeight(k Key, a netip.AddrPort, w int) error {
	s.note("weight %d of %s in %s", w, a, k)
	return s.Table.SetWeight(k, a, w)
}

func (s *spy) DeleteReal(k Key, a netip.AddrPort) error {
	s.note("delete %s from %s", a, k)
	return s.Table.DeleteReal(k, a)
}

// reaches waits until an address answers, and returns the name of who does.
func reaches(t *testing.T, from netns.Doer, addr string) (who string) {
	t.Helper()
	who, _ = netns.Reach(t, from, addr)
	return who
}

// all returns who answers of several requests.
func all(t *testing.T, from netns.Doer, addr string) []string {
	t.Helper()
	seen := map[string]bool{}
	for range 8 {
		seen[reaches(t, from, addr)] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// dump is what the kernel has, in the form of State.
func (b *bed) dump(t *testing.T) string {
	t.Helper()
	s := newDesiredState()
	table := b.calls.Table
	servers := testenv.Must(table.Servers())(t)
	for k, v := range servers {
		reals := testenv.Must(table.Reals(k))(t)
		vs := VirtualServer{Server: v}
		for _, r := range reals {
			testenv.Equal(t, r.Weight, 1, "%s in %s has weight", r.Addr, k)
			vs.Reals = append(vs.Reals, r.Addr)
		}
		slices.SortFunc(vs.Reals, netip.AddrPort.Compare)
		s.Servers[k] = vs
	}
	link := testenv.Must(netlink.LinkByName(nft.IPVSDevice))(t)
	addrs := testenv.Must(netlink.AddrList(link, netlink.FAMILY_V4))(t)
	for _, a := range addrs {
		s.Addresses[netip.MustParseAddr(a.IP.String())] = true
	}
	return s.String()
}

// sorted goes by blocks of lines: addresses sort as numbers or as text.
func sorted(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\n  ", " "), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// dial opens a connection that stays.
func dial(t *testing.T, from netns.Doer, addr string) *net.TCPConn {
	t.Helper()
	var c net.Conn
	testenv.Eventually(t, patience, "connect to "+addr, func() error {
		return from.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", addr, 20*time.Second)
			return err
		})
	})
	return c.(*net.TCPConn)
}

// echo says who answers on an open connection.
func echo(t *testing.T, c net.Conn) string {
	t.Helper()
	who, err := netns.Say(c, patience)
	testenv.NoError(t, err, "an open connection")
	return who
}

// abort ends a connection by a reset, which IPVS forgets within ten seconds; a proper end takes two minutes.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func index(t *testing.T, addr string) int {
	t.Helper()
	i := slices.Index(podAddrs, addr)
	testenv.Require(t, i >= 0, "%q is no pod", addr)
	return i
}

func (b *bed) weight(t *testing.T, k Key, addr string) (weight int, there bool) {
	t.Helper()
	reals := testenv.Must(b.calls.Table.Reals(k))(t)
	for _, r := range reals {
		if r.Addr.Addr().String() == addr {
			return r.Weight, true
		}
	}
	return 0, false
}
