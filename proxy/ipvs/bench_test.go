// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	upstream "k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/conntrack"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/servicerules"
	"github.com/coracle-k8s/coracle/test/netns"
)

// BenchmarkEndpointChange is a change of a Service's only endpoint among many Services with three endpoints each, as
// far as it is ours: IPVS is a table in memory, since few kernels have it, and counts what the kernel would be asked
// and given. The node has all the Services' addresses.
func BenchmarkEndpointChange(b *testing.B) {
	netns.Require(b)
	const number = 5000
	m := &spy{Table: newTable()}
	nft := &counting{Fake: knftables.NewFake(knftables.IPv4Family, servicerules.IPVSTable)}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: servicerules.IPVSDevice}, PeerName: "peer"}); err != nil { // few kernels have dummies either
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: servicerules.IPVSDevice}})
	})
	p := &Proxier{o: Options{NodeName: "n1", Scheduler: DefaultScheduler, NodePortAddresses: []string{nodeAddr + "/32"}}}
	f := &family{name: corev1.IPv4Protocol, netlink: netlink.FAMILY_V4, services: upstream.ServicePortMap{}, endpoints: upstream.EndpointsMap{}, conntrack: conntrack.New()}
	f.rules.nft, f.rules.view, f.apply.table = nft, ruleView{family: rules4, clusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}, m
	f.changes, f.slices = upstream.NewServiceChangeTracker(f.name, newServicePort, nil), upstream.NewEndpointsChangeTracker(f.name, "n1", nil, nil)
	f.health = healthcheck.NewServiceHealthServer("n1", nil, proxyutil.NewNodePortAddresses(f.name, nil), nil, f.name)
	p.families = append(p.families, f)
	for i := range number {
		ip := fmt.Sprintf("10.43.%d.%d", 1+i/200, 1+i%200)
		f.changes.Update(nil, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("s", i)},
			Spec: corev1.ServiceSpec{
				ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
			},
		})
		at := func(k int) string { return fmt.Sprintf("10.42.%d.%d", 1+(3*i+k)/250, 1+(3*i+k)%250) }
		f.slices.EndpointSliceUpdate(sliceAt(i, at(0), at(1), at(2)), false)
	}
	sync := func() {
		if err := p.Sync(b.Context(), false); err != nil {
			b.Fatal(err)
		}
	}
	sync()
	if len(m.changes) != 4*number {
		b.Fatalf("the kernel was told %d times of %d Services", len(m.changes), number)
	}
	m.changes, m.Table.(*table).reads, nft.runs = nil, 0, 0
	b.ReportAllocs()
	before := processorTime(b)
	for n := 0; b.Loop(); n++ {
		f.slices.EndpointSliceUpdate(sliceAt(0, podAddrs[n%2]), false)
		sync()
	}
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/1000/float64(b.N), "own-cpu-ms/op")
	b.ReportMetric(float64(len(m.changes)+m.Table.(*table).reads)/float64(b.N), "ipvs-calls/op")
	b.ReportMetric(float64(nft.runs)/float64(b.N), "nft-runs/op")
}

func sliceAt(i int, ips ...string) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("s", i, "-1"), Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprint("s", i)}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for _, ip := range ips {
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: ptr.To("n2"), Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}})
	}
	return out
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
