// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nftsend"
	"github.com/coracle-k8s/coracle/internal/nfttable"
	"github.com/coracle-k8s/coracle/internal/servicerules"
	"github.com/coracle-k8s/coracle/internal/unexported"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// doubled is a way to a table that has nft write everything in a namespace of its own, too, and wants the tables to be the same after each transaction.
type doubled struct {
	told
	t      *testing.T
	there  *netns.NS
	table  nfttable.Table
	writes *int
}

func (d doubled) Run(ctx context.Context, tx *knftables.Transaction) error {
	text := tx.String()
	var theirs error
	if text != "" {
		*d.writes++
		theirs = netns.WriteNFT(d.there, text)
	}
	ours := d.told.Run(ctx, tx)
	if (ours == nil) != (theirs == nil) {
		d.t.Errorf("nft says %v, and here it is %v, to\n%s", theirs, ours, text)
	}
	if text == "" {
		return ours
	}
	family := uint8(d.table.Family)
	here, want := netns.NFTTable(d.t, netns.Own{}, family, d.table.Name, false), netns.NFTTable(d.t, d.there, family, d.table.Name, false)
	if !slices.Equal(here, want) {
		for _, line := range here {
			if !slices.Contains(want, line) {
				d.t.Errorf("too much: %.500q", line)
			}
		}
		for _, line := range want {
			if !slices.Contains(here, line) {
				d.t.Errorf("missing: %.500q", line)
			}
		}
		d.t.Fatalf("after\n%.5000s", text)
	}
	return ours
}

// rareShapes are what few Services are, beside shapes.
func rareShapes(i int) []func(*corev1.Service) {
	return []func(*corev1.Service){
		func(s *corev1.Service) { // the longest names that there can be
			s.Namespace, s.Name = strings.Repeat("n", 63), fmt.Sprint(strings.Repeat("s", 60), 100+i)
			for k := range s.Spec.Ports {
				s.Spec.Ports[k].Name = fmt.Sprint("a-long-portna", 10+k)
			}
		},
		func(s *corev1.Service) { // an address that others have, too
			s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, "198.51.100.250", "2001:db8:e::250")
		},
		func(s *corev1.Service) {
			s.Spec.Ports = nil
			for k := range 20 {
				protocol := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}[k%3]
				s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", k), Protocol: protocol, Port: int32(65535 - k)})
			}
		},
		func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP },
		func(s *corev1.Service) { // of IPv6 first
			slices.Reverse(s.Spec.ClusterIPs)
			slices.Reverse(s.Spec.IPFamilies)
			s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		},
	}
}

// rareService has up to five shapes.
func rareService(r *rand.Rand, i int) *corev1.Service {
	s := dualService(i)
	for range 1 + r.IntN(3) {
		if s.Spec.Type != corev1.ServiceTypeExternalName {
			shapes(i)[r.IntN(len(shapes(i)))](s)
		}
	}
	for range r.IntN(3) {
		if s.Spec.Type != corev1.ServiceTypeExternalName && len(s.Spec.ClusterIPs) > 1 {
			rareShapes(i)[r.IntN(len(rareShapes(i)))](s)
		}
	}
	return s
}

// behind are slices of a Service, one of each family: with the endpoints of endpointsOf, or with very many.
func behind(r *rand.Rand, i int, s *corev1.Service) []*discoveryv1.EndpointSlice {
	if r.IntN(2) == 0 {
		return with(s, endpointsOf(i)[r.IntN(len(endpointsOf(i)))]).slices
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	var out []*discoveryv1.EndpointSlice
	for family, addr := range map[discoveryv1.AddressType]func(k int) string{
		discoveryv1.AddressTypeIPv4: func(k int) string { return fmt.Sprintf("10.42.%d.%d", k/250, 1+k%250) },
		discoveryv1.AddressTypeIPv6: func(k int) string { return fmt.Sprintf("fd42::%x:%x", k%3, k) },
	} {
		number := []int{0, 1, 2, 3, 40, 300, 1010}[r.IntN(7)]
		if len(s.Spec.Ports) > 1 {
			number = min(number, 40)
		}
		var endpoints []discoveryv1.Endpoint
		for k := range number {
			endpoints = append(endpoints, at(addr(k), []string{"n1", "n2"}[r.IntN(2)], []string{"rs", "rs", "rs", "n", "nst", ""}[r.IntN(6)]))
		}
		out = append(out, sliceOf(s, family, endpoints...))
	}
	return out
}

// TestSentIsLikeNFT: each transaction of upstream's proxier, of the rarest Services and of any change of them, leaves the kernel as if nft had written it.
func TestSentIsLikeNFT(t *testing.T) {
	netns.RequireNFT(t)
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	b := bareNFTables(t, corev1.IPv4Protocol, corev1.IPv6Protocol)
	there := netns.New(t)
	writes := 0
	var byNFT []*asked
	for i, f := range b.families {
		table := tables(b.families)[i]
		if err := netns.WriteNFT(there, fmt.Sprintf("add table %s %s\n", []string{"ip", "ip6"}[i], servicerules.NFTable)); err != nil {
			t.Fatal(err)
		}
		byNFT = append(byNFT, counted(t, b, f))
		way := ofProxier[knftables.Interface](t, b, f, "nftables")
		*way = doubled{(*way).(told), t, there, table, &writes}
	}
	const pool = 12
	var services [pool]*corev1.Service
	var slicesOf [pool][]*discoveryv1.EndpointSlice
	change := func() {
		i := r.IntN(pool)
		tell := func(next []*discoveryv1.EndpointSlice) {
			for _, s := range slicesOf[i] {
				b.OnEndpointSliceDelete(s)
			}
			for _, s := range next {
				b.OnEndpointSliceAdd(s)
			}
			slicesOf[i] = next
		}
		switch have := services[i]; {
		case have == nil:
			services[i] = rareService(r, i)
			b.OnServiceAdd(services[i])
			tell(behind(r, i, services[i]))
		case r.IntN(6) == 0:
			b.OnServiceDelete(have)
			tell(nil)
			services[i] = nil
		case r.IntN(4) == 0: // it becomes another one
			next := rareService(r, i)
			if next.Name != have.Name || next.Namespace != have.Namespace {
				b.OnServiceDelete(have)
				have = nil
			}
			b.OnServiceUpdate(have, next)
			services[i] = next
			tell(behind(r, i, next))
		default:
			tell(behind(r, i, have))
		}
	}
	for step := range 24 {
		for range 1 + r.IntN(2) {
			change()
		}
		if err := b.sync(step%12 == 0); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range services { // listeners of health check node ports end
		if s != nil {
			b.OnServiceDelete(s)
			for _, e := range slicesOf[i] {
				b.OnEndpointSliceDelete(e)
			}
		}
	}
	if err := b.sync(false); err != nil {
		t.Fatal(err)
	}
	started := 0
	for _, a := range byNFT {
		started += a.runs
	}
	t.Logf("%d transactions, of which nft wrote %d", writes, started)
	if started > writes/2 {
		t.Errorf("nft wrote %d of %d transactions", started, writes)
	}
}

// TestStaleChainsGo: a chain that no Service needs any more is deleted a second after that began, though Services change all the time; one that is needed again stays.
func TestStaleChainsGo(t *testing.T) {
	netns.RequireNFT(t)
	b := bareNFTables(t, corev1.IPv4Protocol)
	for i := range 3 {
		b.OnServiceAdd(dualService(i))
		b.OnEndpointSliceAdd(sliceOf(dualService(i), discoveryv1.AddressTypeIPv4, at("10.42.0.5", "n1", "rs")))
	}
	way, err := unexported.Field[map[string]time.Time](b.Provider, staleAt)
	if err != nil {
		t.Fatal(err)
	}
	syncs := 0
	sync := func(full bool) map[string]time.Time {
		t.Helper()
		syncs++
		b.OnEndpointSliceUpdate(nil, sliceOf(dualService(1), discoveryv1.AddressTypeIPv4, at([]string{"10.42.0.5", "10.42.0.6"}[syncs%2], "n1", "rs")))
		if err := b.sync(full); err != nil {
			t.Fatal(err)
		}
		out := map[string]time.Time{} // by Services' names
		for chain, since := range *way {
			out[strings.Split(chain, "/")[1]] = since
		}
		return out
	}
	sync(true)
	b.OnServiceDelete(dualService(0))
	b.OnServiceDelete(dualService(2))
	first := sync(false)
	if first["s0"].IsZero() || first["s2"].IsZero() {
		t.Fatalf("after two of three Services are gone, these chains are to be deleted: %v", first)
	}
	b.OnServiceAdd(dualService(2))
	if now := sync(false); !now["s2"].IsZero() {
		t.Errorf("a Service is back, and its chain is to be deleted: %v", now)
	}
	b.OnServiceDelete(dualService(2))
	if now := sync(false); !now["s2"].After(first["s2"]) {
		t.Errorf("a Service is gone again, since %v, as if it had not been back: %v", now["s2"], first["s2"])
	}
	b.OnServiceAdd(dualService(2))
	eventually(t, "the chain of a Service that is gone is deleted", func() error {
		switch since := sync(false)["s0"]; {
		case !since.IsZero() && !since.Equal(first["s0"]):
			t.Fatalf("after %d syncs a chain is to be deleted a second after %v, and was so after %v", syncs, since, first["s0"])
		case strings.Contains(nft(t, "list chains ip"), "/s0/"):
			return fmt.Errorf("it is there after %d syncs", syncs)
		}
		return nil
	})
	sync(false)
	if rules := nft(t, "list table ip kube-proxy"); strings.Count(rules, "dnat to") != 2 {
		t.Errorf("not both Services that are left are served:\n%s", rules)
	}
}

// sending is a way that sends nothing, for a reason.
type sending struct{ why error }

func (s sending) Send(string) error { return s.why }

// TestRefusedIsSaid: what the kernel refuses when it is sent, and takes from nft, is told of; what both refuse, or only nft knows, is nothing unusual.
func TestRefusedIsSaid(t *testing.T) {
	netns.RequireNFT(t)
	b := bareNFTables(t, corev1.IPv4Protocol, corev1.IPv6Protocol)
	if err := b.sync(true); err != nil {
		t.Fatal(err)
	}
	way := (*ofProxier[knftables.Interface](t, b, corev1.IPv4Protocol, "nftables")).(told)
	for _, c := range []struct {
		name, chain string
		why         error
		said        bool
	}{
		{"the kernel takes it from nft", "x/y", fmt.Errorf("refused: %w", unix.EPERM), true},
		{"only nft knows it", "x/y", nftsend.ErrUnknown, false},
		{"nobody may write it", "never there", unix.EPERM, false},
		{"another reason", "x/y", errors.New("closed"), false},
	} {
		said := false
		way.sender, way.refused = sending{c.why}, func(error) { said = true }
		tx := way.NewTransaction()
		tx.Add(&knftables.Chain{Name: c.chain})
		if err := way.Run(t.Context(), tx); (err == nil) != (c.chain == "x/y") || said != c.said {
			t.Errorf("%s: told of: %v, and the error is %v", c.name, said, err)
		}
	}
}
