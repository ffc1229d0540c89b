// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/internal/guest"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nstest"
	"github.com/coracle-k8s/coracle/internal/servicerules"
	"github.com/coracle-k8s/coracle/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(guest.Main(m, nstest.Main)) }

const (
	nodeAddr    = "192.0.2.1"
	outsideAddr = "192.0.2.2"
	clusterIP   = "10.43.0.9"
)

// testbed is a node (the process's own namespace) with two pods and a machine outside.
type testbed struct {
	outside *nstest.NS
	pods    map[string]*nstest.NS // by address
	client  kubernetes.Interface
	proxy   *Proxy
	record  string
	mode    string
	stop    func()

	protocol corev1.Protocol // of endpoints; empty is TCP
	options  func(*Options)  // changes what the proxy is made with
	port     int32           // of endpoints; zero is 8080
}

func newTestbed(t *testing.T, mode string) *testbed {
	t.Helper()
	nstest.RequireNFT(t)
	b := &testbed{mode: mode, outside: nstest.New(t), pods: map[string]*nstest.NS{}, record: filepath.Join(t.TempDir(), "service-proxy")}
	for name, value := range map[string]string{
		"ip_forward": "1",
		// What is sent back the way it came has the kernel tell of a better way, at first; once it has given up, each packet puts off the refusal
		// that its rate limit would allow, and nobody is refused any more.
		"conf/all/send_redirects": "0", "conf/default/send_redirects": "0",
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	b.outside.Link(t, "uplink", "eth0", []string{nodeAddr + "/24"}, []string{outsideAddr + "/24"})
	for i, ip := range []string{"10.42.0.2", "10.42.0.6"} {
		ns := nstest.New(t)
		prefix := netip.MustParsePrefix(ip + "/30")
		gw := prefix.Masked().Addr().Next().String()
		ns.Link(t, fmt.Sprintf("pod%d", i), "eth0", []string{gw + "/30"}, []string{ip + "/30"})
		if err := ns.Do(func() error { return nstest.AddRoute("0.0.0.0/0", gw) }); err != nil {
			t.Fatal(err)
		}
		b.pods[ip] = ns
		nstest.Serve(t, ns, ip, "tcp", ":8080")
	}
	if err := b.outside.Do(func() error { return nstest.AddRoute("10.43.0.0/16", nodeAddr) }); err != nil {
		t.Fatal(err)
	}
	if err := nstest.AddRoute("0.0.0.0/0", outsideAddr); err != nil { // without a route the node's own packets meet no rule
		t.Fatal(err)
	}
	b.client = fake.NewClientset(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}},
		&networkingv1.ServiceCIDR{
			ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
			Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16"}},
		},
	)
	b.start(t)
	t.Cleanup(func() {
		b.stop()
		if name, err := servicerules.Remove(b.record); err != nil || name != mode {
			t.Errorf("removed %q, %v", name, err)
		}
		if out := nft(t, "list tables"); strings.Contains(out, "kube-proxy") || strings.Contains(out, "coracle-ipvs") {
			t.Errorf("Remove left tables: %s", out)
		}
	})
	return b
}

func (b *testbed) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	o := Options{
		NodeIPs:      []netip.Addr{netip.MustParseAddr(nodeAddr)},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		RecordFile:   b.record,
		Mode:         b.mode,
	}
	if b.options != nil {
		b.options(&o)
	}
	shared, p := newTestProxy(t, ctx, b.client, o)
	p.guard = 100 * time.Millisecond
	done := make(chan error, 2)
	go func() { done <- shared.Run(ctx) }()
	go func() { done <- p.Run(ctx) }()
	b.proxy = p
	b.stop = func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		b.stop = func() {}
	}
}

// newTestProxy makes the informers and the proxy; the caller runs both.
func newTestProxy(t *testing.T, ctx context.Context, client kubernetes.Interface, o Options) (*netinformers.Informers, *Proxy) {
	t.Helper()
	shared, err := netinformers.New(netinformers.Options{Client: client, NodeName: "n1", Services: true})
	if err != nil {
		t.Fatal(err)
	}
	o.Informers = shared
	o.Logger = ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	p, err := New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	return shared, p
}

func (b *testbed) service(t *testing.T, change func(*corev1.Service)) {
	t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP},
			IPFamilies:            []corev1.IPFamily{corev1.IPv4Protocol},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
			Ports: []corev1.ServicePort{{
				Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080), NodePort: 30080,
			}},
		},
	}
	if change != nil {
		change(svc)
	}
	if _, err := b.client.CoreV1().Services("default").Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (b *testbed) endpoints(t *testing.T, ips ...string) {
	t.Helper()
	b.endpointsOn(t, "n1", ips...)
}

func (b *testbed) endpointsOn(t *testing.T, node string, ips ...string) {
	t.Helper()
	ctx, slices := t.Context(), b.client.DiscoveryV1().EndpointSlices("default")
	name, port, proto := "http", cmp.Or(b.port, 8080), cmp.Or(b.protocol, corev1.ProtocolTCP)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	for _, ip := range ips {
		ready := true
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{ip}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		})
	}
	if _, err := slices.Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
		if _, err := slices.Create(ctx, slice, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// here is the node's own namespace.
type here = nstest.Own

// ask returns who answers, and the address that it sees.
func ask(from nstest.Doer, addr string) (server, peer string, err error) {
	answer, err := nstest.Ask(from, addr)
	server, peer, _ = strings.Cut(answer, " ")
	return server, peer, err
}

// answered is ask for what has to answer. A machine that has much to do may need a second try.
func answered(t *testing.T, from nstest.Doer, addr string) (server, peer string) {
	t.Helper()
	eventually(t, addr+" answers", func() (err error) { server, peer, err = ask(from, addr); return err })
	return server, peer
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, what, f)
}

func reaches(t *testing.T, ns nstest.Doer, what, addr string) {
	t.Helper()
	eventually(t, what+" ("+addr+")", func() error { _, _, err := ask(ns, addr); return err })
}

func fails(t *testing.T, ns nstest.Doer, what, addr string) {
	t.Helper()
	eventually(t, what+" ("+addr+")", func() error {
		if _, _, err := ask(ns, addr); err == nil {
			return fmt.Errorf("still answers")
		}
		return nil
	})
}

func nft(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %v: %v: %s", args, err, out)
	}
	return string(out)
}

func testServices(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, nil)
	b.endpoints(t, "10.42.0.2", "10.42.0.6")
	a := b.pods["10.42.0.2"]

	reaches(t, a, "pod to cluster IP", clusterIP+":80")
	reaches(t, b.outside, "outside to cluster IP", clusterIP+":80")
	reaches(t, b.outside, "outside to node port", nodeAddr+":30080")
	reaches(t, a, "pod to node port", nodeAddr+":30080")
	reaches(t, here{}, "node to node port", nodeAddr+":30080")
	if _, _, err := ask(here{}, "127.0.0.1:30080"); err == nil {
		t.Error("node port answers on loopback: upstream's nftables mode does not")
	}
	seen := map[string]bool{}
	for range 200 {
		server, peer := answered(t, a, clusterIP+":80")
		seen[server] = true
		if server == "10.42.0.6" && peer != "10.42.0.2" {
			t.Fatalf("a pod's address was replaced by %s on the way to another pod", peer)
		}
	}
	if len(seen) != 2 {
		t.Errorf("200 connections reached %v, want both endpoints", seen)
	}
	if _, peer := answered(t, b.outside, nodeAddr+":30080"); peer == outsideAddr {
		t.Errorf("traffic from outside to a node port came from %q, want it masqueraded", peer)
	}

	b.endpoints(t, "10.42.0.6")
	eventually(t, "only the endpoint that is left answers", func() error {
		for range 20 {
			if server, _, err := ask(a, clusterIP+":80"); err != nil || server != "10.42.0.6" {
				return fmt.Errorf("got %q: %w", server, err)
			}
		}
		return nil
	})
	b.endpoints(t)
	fails(t, a, "no endpoint", clusterIP+":80")
	b.endpoints(t, "10.42.0.6")
	reaches(t, a, "endpoint again", clusterIP+":80")

	if h := b.proxy.Health(); !h.Synced || h.Err != nil || h.LastDuration == 0 {
		t.Errorf("health %+v", h)
	}
	t.Logf("a sync with one Service takes %v", b.proxy.Health().LastDuration)
	b.stop()
	reaches(t, a, "while the agent is down", clusterIP+":80")
	api := b.client.(*fake.Clientset)
	api.ClearActions()
	b.start(t)
	eventually(t, "Services are watched", func() error { // a fake tells a watch nothing of what was deleted between the list and its beginning
		if !slices.ContainsFunc(api.Actions(), func(a clienttesting.Action) bool { return a.Matches("watch", "services") }) {
			return errors.New("not yet")
		}
		return nil
	})
	if err := b.client.CoreV1().Services("default").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	fails(t, a, "deleted Service", clusterIP+":80")
	fails(t, b.outside, "deleted Service", nodeAddr+":30080")
}

func testSessionAffinity(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, func(s *corev1.Service) {
		timeout := int32(60)
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	})
	b.endpoints(t, "10.42.0.2", "10.42.0.6")
	reaches(t, b.outside, "cluster IP", clusterIP+":80")
	first, _ := answered(t, b.outside, clusterIP+":80")
	for range 30 {
		if got, _ := answered(t, b.outside, clusterIP+":80"); got != first {
			t.Fatalf("got %s, want %s as before", got, first)
		}
	}
}

func TestServiceCIDRAddedLaterIsGuarded(t *testing.T) {
	b := newTestbed(t, ModeNFTables)
	b.service(t, nil)
	b.endpoints(t, "10.42.0.2")
	reaches(t, b.outside, "cluster IP", clusterIP+":80")
	_, err := b.client.NetworkingV1().ServiceCIDRs().Create(t.Context(), &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.99.0.0/16"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "unallocated addresses of the new CIDR are rejected", func() error {
		if out := nft(t, "list table ip kube-proxy"); !strings.Contains(out, "10.99.0.0/16") {
			return fmt.Errorf("the rules do not name it")
		}
		return nil
	})
}

func TestDualStack(t *testing.T) {
	nstest.RequireNFT(t)
	ctx, cancel := context.WithCancel(t.Context())
	client := fake.NewClientset(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			ClusterIP: clusterIP, ClusterIPs: []string{clusterIP, "fd43::9"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	})
	record := filepath.Join(t.TempDir(), "service-proxy")
	shared, p := newTestProxy(t, ctx, client, Options{
		NodeIPs:      []netip.Addr{netip.MustParseAddr(nodeAddr), netip.MustParseAddr("2001:db8::1")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd43::/112")},
		RecordFile:   record,
	})
	done := make(chan error, 2) // one result each
	go func() { done <- shared.Run(ctx) }()
	go func() { done <- p.Run(ctx) }()
	for table, want := range map[string]string{"ip": clusterIP, "ip6": "fd43::9"} {
		eventually(t, table, func() error {
			if out := nft(t, "list ruleset "+table); !strings.Contains(out, want) {
				return fmt.Errorf("the rules do not name %s", want)
			}
			return nil
		})
	}
	eventually(t, "health", func() error {
		if h := p.Health(); !h.Synced || h.Err != nil {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := servicerules.Remove(record); err != nil {
		t.Error(err)
	}
}

// A kernel that refuses the rules is told of, and tried again.
func TestFailedSyncIsReported(t *testing.T) {
	b := newTestbed(t, ModeNFTables)
	b.service(t, nil)
	b.endpoints(t, "10.42.0.2")
	reaches(t, b.outside, "cluster IP", clusterIP+":80")
	// A chain of ours with another hook cannot be altered in place, so that every transaction fails.
	nft(t, "delete table ip kube-proxy; add table ip kube-proxy; add chain ip kube-proxy nat-prerouting { type filter hook input priority 5; }")
	b.endpoints(t, "10.42.0.6")
	eventually(t, "the error is told", func() error {
		if h := b.proxy.Health(); h.Err == nil {
			return fmt.Errorf("health %+v", h)
		}
		return nil
	})
	nft(t, "delete table ip kube-proxy")
	reaches(t, b.outside, "cluster IP once the obstacle is gone", clusterIP+":80")
	eventually(t, "the error is gone", func() error {
		if h := b.proxy.Health(); h.Err != nil {
			return h.Err
		}
		return nil
	})
}

func testFlushedRulesetHeals(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, nil)
	b.endpoints(t, "10.42.0.2")
	reaches(t, b.outside, "cluster IP", clusterIP+":80")
	nft(t, "flush ruleset")
	reaches(t, b.outside, "cluster IP after a flush", clusterIP+":80")
}

func TestStopLeavesNoGoroutine(t *testing.T) {
	nstest.Require(t)
	before := goleak.IgnoreCurrent() // listeners of health check node ports, which are upstream's, may have to end yet
	t.Run("run", func(t *testing.T) {
		b := newTestbed(t, ModeNFTables)
		b.service(t, nil)
		b.endpoints(t, "10.42.0.2")
		reaches(t, b.outside, "cluster IP", clusterIP+":80")
	})
	goleak.VerifyNone(t, before)
}

func TestMissingNFTIsSaid(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	shared, err := netinformers.New(netinformers.Options{Client: fake.NewClientset(), NodeName: "n1", Services: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = New(t.Context(), Options{
		NodeIPs:      []netip.Addr{netip.MustParseAddr(nodeAddr)},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		Informers:    shared,
	})
	if err == nil || !strings.Contains(err.Error(), "nft") {
		t.Errorf("got %v, want an error that names nft", err)
	}
}
