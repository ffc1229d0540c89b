// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nfttable"
	"github.com/coracle-k8s/coracle/internal/unexported"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// bareNFTables is the back end alone, of IPv4 or of both families. It is told of the Services' networks and of the node, and has its tables.
func bareNFTables(t testing.TB, families ...corev1.IPFamily) *nftables {
	t.Helper()
	shared, err := netinformers.New(netinformers.Options{Client: fake.NewClientset(), NodeName: "n1", Services: true})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Informers: shared}
	for _, f := range families {
		if f == corev1.IPv4Protocol {
			o.NodeIPs, o.ClusterCIDRs = append(o.NodeIPs, netip.MustParseAddr(nodeAddr)), append(o.ClusterCIDRs, netip.MustParsePrefix("10.42.0.0/16"))
		} else {
			o.NodeIPs, o.ClusterCIDRs = append(o.NodeIPs, netip.MustParseAddr(nodeAddr6)), append(o.ClusterCIDRs, netip.MustParsePrefix("fd42::/56"))
		}
	}
	b, err := openNFTables(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, table := range b.(tabled).ownTables() {
			if err := nfttable.Delete(table); err != nil {
				t.Error(err)
			}
		}
	})
	b.OnTopologyChange(theNode().Labels)
	b.OnServiceCIDRsChanged(ofServices.Spec.CIDRs)
	if err := b.prepare(); err != nil {
		t.Fatal(err)
	}
	return b.(*nftables)
}

// asked counts what a proxier asks and sends the kernel in spite of being told.
type asked struct {
	knftables.Interface
	lists, runs int
}

func (a *asked) List(ctx context.Context, objectType string) ([]string, error) {
	a.lists++
	return a.Interface.List(ctx, objectType)
}

func (a *asked) Run(ctx context.Context, tx *knftables.Transaction) error {
	a.runs++
	return a.Interface.Run(ctx, tx)
}

// ofProxier finds a field of upstream's proxier of a family, where there are two.
func ofProxier[T any](t *testing.T, b *nftables, family corev1.IPFamily, field string) *T {
	t.Helper()
	at := map[corev1.IPFamily]string{corev1.IPv4Protocol: "ipv4Proxier", corev1.IPv6Protocol: "ipv6Proxier"}[family]
	out, err := unexported.Field[T](b.Provider, []string{at, field})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// counted puts an asked between the proxier and the kernel.
func counted(t *testing.T, b *nftables, family corev1.IPFamily) *asked {
	t.Helper()
	way := ofProxier[knftables.Interface](t, b, family, "nftables")
	have, ok := (*way).(told)
	if !ok {
		t.Fatalf("the proxier of %s has a %T", family, *way)
	}
	out := &asked{Interface: have.Interface}
	have.Interface = out
	*way = have
	return out
}

// TestToldIsLikeAsking: after many changes, among which another program harms the tables, they are what upstream's proxier writes at once, and the kernel was not
// asked what there is.
func TestToldIsLikeAsking(t *testing.T) {
	netns.RequireNFT(t)
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	b := bareNFTables(t, corev1.IPv4Protocol, corev1.IPv6Protocol)
	four, six := counted(t, b, corev1.IPv4Protocol), counted(t, b, corev1.IPv6Protocol)
	pool := anyServices(r, 30)
	there := make([]bool, len(pool))
	slicesOf := func(i int, tell func(*discoveryv1.EndpointSlice)) {
		for _, s := range pool[i].slices {
			tell(s)
		}
	}
	toggle := func(i int) {
		if there[i] = !there[i]; there[i] {
			b.OnServiceAdd(pool[i].service)
			slicesOf(i, b.OnEndpointSliceAdd)
		} else {
			b.OnServiceDelete(pool[i].service)
			slicesOf(i, b.OnEndpointSliceDelete)
		}
	}
	for i := 0; i < len(pool); i += 2 {
		toggle(i)
	}
	if err := b.sync(true); err != nil {
		t.Fatal(err)
	}
	for range 25 {
		for range 1 + r.IntN(3) {
			i := r.IntN(len(pool))
			if r.IntN(2) == 0 || !there[i] {
				toggle(i)
				continue
			}
			slicesOf(i, b.OnEndpointSliceDelete)
			pool[i] = with(pool[i].service, endpointsOf(i)[r.IntN(len(endpointsOf(i)))])
			slicesOf(i, b.OnEndpointSliceAdd)
		}
		harm(t, r, b)
		if err := b.sync(false); err != nil {
			t.Fatal(err)
		}
	}
	untilTidy(t, b)
	if four.lists+six.lists > 0 {
		t.Errorf("the kernel was asked %d times for names in family ip, %d times in ip6", four.lists, six.lists)
	}
	var left []served
	for i := range pool {
		if there[i] {
			left = append(left, pool[i])
		}
	}
	wantAsUpstream(t, b, left)
}

// untilTidy waits until upstream's proxier has deleted the chains that no Service needs any more.
func untilTidy(t *testing.T, b *nftables) {
	t.Helper()
	eventually(t, "what no Service needs is deleted", func() error {
		left, age := 0, time.Hour
		for _, f := range b.families {
			for _, since := range *ofProxier[map[string]time.Time](t, b, f, "staleChains") {
				left, age = left+1, min(age, time.Since(since))
			}
		}
		if left == 0 {
			return nil
		}
		if age > time.Second { // upstream deletes what no sync has seen for a second, and each sync begins that anew
			if err := b.sync(false); err != nil {
				t.Fatal(err)
			}
		}
		return fmt.Errorf("there are %d chains, for %v", left, age)
	})
}

// wantAsUpstream compares the tables with those that upstream's proxier writes at once for the Services that there are, and takes both away.
func wantAsUpstream(t *testing.T, b *nftables, there []served) {
	t.Helper()
	ours := dumped(t)
	for _, s := range there {
		b.OnServiceDelete(s.service)
	}
	if err := b.sync(false); err != nil { // listeners of health check node ports end
		t.Fatal(err)
	}
	nft(t, "delete table ip kube-proxy; delete table ip6 kube-proxy")
	theirs := theirRules(t, there)
	for _, line := range ours {
		if !slices.Contains(theirs, line) {
			t.Errorf("too much: %s", line)
		}
	}
	for _, line := range theirs {
		if !slices.Contains(ours, line) {
			t.Errorf("missing: %s", line)
		}
	}
}

// harm does at random what another program might do to our tables, and what the proxier gets over without a full sync: it makes chains and sets that look like ours, and
// deletes chains to which nothing leads any more.
func harm(t *testing.T, r *rand.Rand, b *nftables) {
	t.Helper()
	i := r.IntN(2)
	table := []string{"ip kube-proxy", "ip6 kube-proxy"}[i]
	switch r.IntN(4) {
	case 0:
		nft(t, fmt.Sprintf("add set %s affinity-stranger-%d { type inet_service; }", table, r.IntN(3)))
	case 1:
		nft(t, fmt.Sprintf("add chain %s service-stranger-%d/x", table, r.IntN(3)))
	case 2:
		nft(t, "add table ip stranger; delete table ip stranger")
	case 3:
		for chain := range *ofProxier[map[string]time.Time](t, b, b.families[i], "staleChains") {
			// It may be gone already. It may also be in use: what another program has deleted upstream takes for stale until it looks again, though a Service needs it by now.
			out, err := exec.Command("nft", fmt.Sprintf("add chain %s %s; delete chain %s %s", table, chain, table, chain)).CombinedOutput()
			if err != nil && !strings.Contains(string(out), "busy") {
				t.Fatalf("%v: %s", err, out)
			}
		}
	}
}

// TestNothingToWrite: a family that a change does not concern costs no program's start, and an error in what was to be written is one.
func TestNothingToWrite(t *testing.T) {
	netns.RequireNFT(t)
	b := bareNFTables(t, corev1.IPv4Protocol, corev1.IPv6Protocol)
	four, six := counted(t, b, corev1.IPv4Protocol), counted(t, b, corev1.IPv6Protocol)
	s := dualService(0)
	b.OnServiceAdd(s)
	b.OnEndpointSliceAdd(sliceOf(s, discoveryv1.AddressTypeIPv4, at("10.42.0.5", "n1", "rs")))
	if err := b.sync(true); err != nil {
		t.Fatal(err)
	}
	written := generation(t)
	runs4, runs6 := four.runs, six.runs
	b.OnEndpointSliceUpdate(nil, sliceOf(s, discoveryv1.AddressTypeIPv4, at("10.42.0.6", "n1", "rs")))
	if err := b.sync(false); err != nil {
		t.Fatal(err)
	}
	if now := generation(t); four.runs != runs4 || six.runs != runs6 || now != written+1 {
		t.Errorf("a change of IPv4 ran nft %d times for IPv4, and %d times for IPv6, and there were %d transactions", four.runs-runs4, six.runs-runs6, now-written)
	}
	if rules := nft(t, "list table ip kube-proxy"); !strings.Contains(rules, "10.42.0.6") || strings.Contains(rules, "10.42.0.5") {
		t.Errorf("the change is not in the kernel:\n%s", rules)
	}
	tx := six.NewTransaction()
	tx.Add(&knftables.Chain{})
	if err := (*ofProxier[knftables.Interface](t, b, corev1.IPv6Protocol, "nftables")).Run(t.Context(), tx); err == nil {
		t.Error("a transaction that could not be put together is taken for an empty one")
	}
}

func generation(t *testing.T) uint32 {
	t.Helper()
	g, err := nfttable.Generation()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestSentWithoutNFT: changes of what most Services are do not start nft, and what only nft knows is written by it.
func TestSentWithoutNFT(t *testing.T) {
	netns.RequireNFT(t)
	b := bareNFTables(t, corev1.IPv4Protocol)
	way, err := unexported.Field[knftables.Interface](b.Provider, wayAt)
	if err != nil {
		t.Fatal(err)
	}
	have, ok := (*way).(told)
	if !ok {
		t.Fatalf("the proxier has a %T", *way)
	}
	runs := &asked{Interface: have.Interface}
	have.Interface = runs
	*way = have
	if err := b.sync(true); err != nil {
		t.Fatal(err)
	}
	shape := shapes(0)
	for i, c := range []struct {
		name   string
		change []func(*corev1.Service)
		byNFT  bool
	}{
		{"a cluster IP", nil, false},
		{"three ports", []func(*corev1.Service){shape[11]}, false},
		{"a node port", []func(*corev1.Service){shape[1]}, false},
		{"a load balancer's address", []func(*corev1.Service){shape[2]}, false},
		{"an external IP", []func(*corev1.Service){shape[7]}, false},
		{"for pods of this node", []func(*corev1.Service){shape[9]}, false},
		{"affinity", []func(*corev1.Service){shape[8]}, false},
		{"affinity and clients' own addresses", []func(*corev1.Service){shape[8], shape[10]}, false},
		{"clients' own addresses", []func(*corev1.Service){shape[10]}, false},
		{"source ranges", []func(*corev1.Service){shape[4]}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := dualService(i, c.change...)
			before, byNFT := generation(t), runs.runs
			b.OnServiceAdd(s)
			for _, ips := range [][]string{nil, {"10.42.0.5"}, {"10.42.0.5", "10.42.1.5"}, {"10.42.0.6", "10.42.1.5", "10.42.1.6"}, {"10.42.0.6"}, nil} {
				var endpoints []discoveryv1.Endpoint
				for _, ip := range ips {
					endpoints = append(endpoints, at(ip, "n1", "rs"))
				}
				b.OnEndpointSliceUpdate(nil, sliceOf(s, discoveryv1.AddressTypeIPv4, endpoints...))
				if err := b.sync(false); err != nil {
					t.Fatal(err)
				}
			}
			b.OnServiceDelete(s)
			if err := b.sync(false); err != nil {
				t.Fatal(err)
			}
			if byNFT = runs.runs - byNFT; (byNFT > 0) != c.byNFT {
				t.Errorf("nft was started %d times", byNFT)
			}
			if now := generation(t); now < before+6 {
				t.Errorf("there were %d transactions for seven changes", now-before)
			}
		})
	}
}

// byNFT is told, and starts nft for whatever it writes.
type byNFT struct{ told }

func (b byNFT) Run(ctx context.Context, tx *knftables.Transaction) error {
	return b.Interface.Run(ctx, tx)
}

// BenchmarkEndpointChange is a change of the only endpoint of a Service (plain, with session affinity, with external policy Local) among many plain ones with three endpoints each, as test/benchnet has them:
// as upstream's proxier does it, which asks the kernel what there is and starts nft; told by the kernel, with nft; and told and sent without nft.
func BenchmarkEndpointChange(b *testing.B) {
	netns.RequireNFT(b)
	const number = 5000
	be := bareNFTables(b, corev1.IPv4Protocol)
	for i := range number {
		s, slice := crowded(i, fmt.Sprintf("10.43.%d.%d", 1+i/200, 1+i%200))
		slice.Endpoints = slice.Endpoints[:0]
		for k := range 3 {
			slice.Endpoints = append(slice.Endpoints, at(fmt.Sprintf("10.42.%d.%d", 1+(3*i+k)/250, 1+(3*i+k)%250), "n2", "rs"))
		}
		be.OnServiceAdd(s)
		be.OnEndpointSliceAdd(slice)
	}
	if err := be.sync(true); err != nil {
		b.Fatal(err)
	}
	way, err := unexported.Field[knftables.Interface](be.Provider, wayAt)
	if err != nil {
		b.Fatal(err)
	}
	have, ok := (*way).(told)
	if !ok {
		b.Fatal("the proxier is not told")
	}
	plain, _ := crowded(0, "10.43.1.0")
	plain.Spec.Type = corev1.ServiceTypeClusterIP
	first := plain
	change := func(n int) {
		_, slice := crowded(0, "")
		slice.Endpoints = []discoveryv1.Endpoint{at([]string{"10.42.0.2", "10.42.0.6"}[n%2], "n1", "rs")}
		be.OnEndpointSliceUpdate(nil, slice)
		if err := be.sync(false); err != nil {
			b.Fatal(err)
		}
	}
	for _, of := range []struct {
		name  string
		shape func(*corev1.Service)
	}{{"plain", shapes(0)[0]}, {"affinity", shapes(0)[8]}, {"local", shapes(0)[10]}} {
		before := first
		first = plain.DeepCopy()
		of.shape(first)
		be.OnServiceUpdate(before, first)
		for _, c := range []struct {
			name string
			way  knftables.Interface
		}{{"asks", have.Interface}, {"told", byNFT{have}}, {"sent", have}} {
			b.Run(of.name+"/"+c.name, func(b *testing.B) {
				*way = c.way
				change(0) // what was told meanwhile, or is asked for once
				b.ReportAllocs()
				own, nft := processorTime(b, syscall.RUSAGE_SELF), processorTime(b, syscall.RUSAGE_CHILDREN)
				for n := 1; b.Loop(); n++ {
					change(n)
				}
				own, nft = processorTime(b, syscall.RUSAGE_SELF)-own, processorTime(b, syscall.RUSAGE_CHILDREN)-nft
				b.ReportMetric(float64(own.Microseconds())/1000/float64(b.N), "own-cpu-ms/op")
				b.ReportMetric(float64(nft.Microseconds())/1000/float64(b.N), "nft-cpu-ms/op")
			})
		}
	}
}

func processorTime(b *testing.B, whose int) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(whose, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
