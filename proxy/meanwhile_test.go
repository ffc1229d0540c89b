// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFullSyncRepairsDrift: another program changes the tables again and again, and coracle starts again now and then,
// among all kinds of changes. After the next full sync the tables are what upstream's proxier writes at once. The other
// program works between what coracle does, some of it each time; by hand (make soak) at any moment, also in the middle
// of a sync.
func TestFullSyncRepairsDrift(t *testing.T) {
	netns.RequireNFT(t)
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	b := bareNFTables(t, corev1.IPv4Protocol, corev1.IPv6Protocol)
	pool := anyServices(r, 20)
	there := make([]bool, len(pool))
	tell := func(b *nftables, i int) {
		b.OnServiceAdd(pool[i].service)
		for _, s := range pool[i].slices {
			b.OnEndpointSliceAdd(s)
		}
	}
	change := func() {
		i := r.IntN(len(pool))
		if !there[i] {
			there[i] = true
			tell(b, i)
			return
		}
		for _, s := range pool[i].slices {
			b.OnEndpointSliceDelete(s)
		}
		if r.IntN(2) == 0 {
			b.OnServiceDelete(pool[i].service)
			there[i] = false
			return
		}
		old := pool[i].service
		svc := old.DeepCopy()
		for k := range svc.Spec.Ports { // renamed ports are other chains
			if r.IntN(2) == 0 {
				svc.Spec.Ports[k].Name = fmt.Sprintf("p%d-%d", k, r.IntN(3))
			}
		}
		pool[i] = with(svc, endpointsOf(i)[r.IntN(len(endpointsOf(i)))])
		b.OnServiceUpdate(old, svc)
		for _, s := range pool[i].slices {
			b.OnEndpointSliceAdd(s)
		}
	}
	try := func(full bool) bool { return b.sync(full) == nil }
	sync1 := func(full bool) {
		t.Helper()
		for tries := 0; !try(full); tries++ {
			if tries > 50 {
				t.Fatal("it fails again and again")
			}
		}
	}
	for range len(pool) {
		change()
	}
	sync1(true)

	done := make(chan struct{})
	var other sync.WaitGroup
	otherRandom := rand.New(rand.NewPCG(seed, 1))
	var did []string
	harm := func() {
		table := []string{"ip kube-proxy", "ip6 kube-proxy"}[otherRandom.IntN(2)]
		all := []string{
			"delete table " + table, "flush table " + table, "flush ruleset", "flush chain " + table + " services", "flush map " + table + " service-ips",
			"flush set " + table + " cluster-ips", "add chain " + table + " service-stranger/x", "delete chain " + table + " service-stranger/x", "flush map " + table + " no-endpoint-services",
			"add table ip stranger; delete table ip stranger", "insert rule " + table + " services accept",
			"flush set " + table + " hairpin-connections", "flush map " + table + " firewall-ips",
		}
		what := all[otherRandom.IntN(len(all))]
		did = append(did, what)
		_ = exec.Command("nft", what).Run() // not everything can be done at any time
	}
	anyMoment := os.Getenv(testenv.RandomVar) != ""
	if anyMoment {
		other.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Duration(otherRandom.IntN(60)) * time.Millisecond): // at any moment of the other's work
					harm()
				}
			}
		})
	}
	for range 30 {
		if !anyMoment {
			for range otherRandom.IntN(4) {
				harm()
			}
		}
		for range r.IntN(4) {
			change()
		}
		switch r.IntN(8) {
		case 0:
			if ok, err := b.intact(); err == nil && !ok {
				try(true)
			}
		case 1: // coracle starts again
			b = bareNFTables(t, corev1.IPv4Protocol, corev1.IPv6Protocol)
			for i := range pool {
				if there[i] {
					tell(b, i)
				}
			}
			try(false)
		default:
			try(r.IntN(10) == 0)
		}
	}
	close(done)
	other.Wait()
	sync1(true)
	untilTidy(t, b)
	var left []served
	for i := range pool {
		if there[i] {
			left = append(left, pool[i])
		}
	}
	for _, table := range []string{"ip kube-proxy", "ip6 kube-proxy"} {
		_ = exec.Command("nft", "delete table "+strings.Fields(table)[0]+" stranger").Run()
	}
	wantAsUpstream(t, b, left)
	if t.Failed() {
		t.Fatalf("the harm was\n%s", strings.Join(slices.Compact(did), "\n"))
	}
}
