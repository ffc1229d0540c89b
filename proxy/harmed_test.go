// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// unsure says at random that a transaction failed: of one that was not sent, or of one that is in force.
type unsure struct {
	knftables.Interface
	r     *rand.Rand
	every int // how many transactions have one that fails; 0: none does
}

var errUnsure = errors.New("for no reason")

func (u *unsure) Run(ctx context.Context, tx *knftables.Transaction) error {
	fails := u.every > 0 && u.r.IntN(u.every) == 0
	if fails && u.r.IntN(2) == 0 {
		return errUnsure
	}
	if err := u.Interface.Run(ctx, tx); err != nil {
		return err
	}
	if fails {
		return errUnsure
	}
	return nil
}

// TestHealsWhatOthersHarm: whatever another program does to the tables while Services change, and whatever becomes of transactions of our own, the tables are what upstream's proxier writes
// at once: after the looks that are taken every half a minute, or, for what only one Service has, after what is written every hour.
func TestHealsWhatOthersHarm(t *testing.T) {
	netns.RequireNFT(t)
	for _, c := range []struct {
		name   string
		harms  func(r *rand.Rand, b *nftables) []string
		hourly bool
	}{
		{"within half a minute", graveHarm, false},
		{"within an hour", finerHarm, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			seed := testenv.Seed(t)
			r := rand.New(rand.NewPCG(seed, 0))
			harmed(t, r, c.harms, c.hourly)
		})
	}
}

func harmed(t *testing.T, r *rand.Rand, harms func(*rand.Rand, *nftables) []string, hourly bool) {
	t.Helper()
	b := bareNFTables(t, corev1.IPv4Protocol, corev1.IPv6Protocol)
	var ways []*unsure
	for _, f := range b.families {
		way := ofProxier[knftables.Interface](t, b, f, "nftables")
		have := (*way).(told)
		u := &unsure{Interface: have.Interface, r: r, every: 5}
		have.Interface = u
		sent := &unsure{Interface: have, r: r, every: 5} // also of those that do not come to nft
		*way, ways = sent, append(ways, u, sent)
	}
	pool := anyServices(r, 20)
	there := make([]bool, len(pool))
	change := func() {
		i := r.IntN(len(pool))
		was := pool[i]
		if there[i] {
			for _, s := range was.slices {
				b.OnEndpointSliceDelete(s)
			}
			if r.IntN(2) == 0 {
				b.OnServiceDelete(was.service)
				there[i] = false
				return
			}
			pool[i] = with(was.service, endpointsOf(i)[r.IntN(len(endpointsOf(i)))])
		} else {
			b.OnServiceAdd(was.service)
			there[i] = true
		}
		for _, s := range pool[i].slices {
			b.OnEndpointSliceAdd(s)
		}
	}
	// sync does as the front does: it tries again.
	sync := func(full bool) {
		t.Helper()
		for tries := 0; ; tries++ {
			err := b.sync(full)
			if err == nil {
				return
			}
			if tries > 50 {
				t.Fatal(err)
			}
		}
	}
	look := func() {
		t.Helper()
		for looks := 0; ; looks++ {
			ok, err := b.intact()
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				return
			}
			if looks > 5 {
				t.Fatal("what was written is taken for harmed again and again")
			}
			sync(true)
		}
	}
	for range len(pool) {
		change()
	}
	sync(true)
	var did []string
	for range 12 {
		for range r.IntN(3) {
			change()
		}
		all := harms(r, b)
		what := all[r.IntN(len(all))]
		did = append(did, what[:min(len(what), 200)])
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(what + "\n")
		_ = cmd.Run() // not everything can be done at any time
		if r.IntN(2) == 0 {
			sync(false)
		}
		look()
	}
	for _, u := range ways {
		u.every = 0
	}
	sync(hourly)
	look()
	for _, table := range []string{"ip kube-proxy", "ip6 kube-proxy"} { // upstream leaves alone what is not named like a Service's chain; nothing leads there, but from there to chains that are to go
		nft(t, fmt.Sprintf("add chain %s x; delete chain %s x", table, table))
	}
	untilTidy(t, b)
	var left []served
	for i := range pool {
		if there[i] {
			left = append(left, pool[i])
		}
	}
	nft(t, "add table ip stranger; delete table ip stranger; add table inet stranger; delete table inet stranger")
	wantAsUpstream(t, b, left)
	if t.Failed() {
		t.Fatalf("the harm was\n%s", strings.Join(did, "\n"))
	}
}

// graveHarm is what nothing is served after, or much of it.
func graveHarm(r *rand.Rand, b *nftables) []string {
	family := []string{"ip", "ip6"}[r.IntN(2)]
	table := family + " kube-proxy"
	frame := slices.Sorted(maps.Keys(b.frame[tables(b.families)[map[string]int{"ip": 0, "ip6": 1}[family]]]))
	chain := table + " " + frame[r.IntN(len(frame))]
	var many strings.Builder // more than a socket holds
	many.WriteString("add table ip stranger\n")
	for i := range 4000 {
		fmt.Fprintf(&many, "add chain ip stranger a-chain-with-a-name-as-long-as-a-Service-has-%d\n", i)
	}
	all := []string{
		"delete table " + table,
		"delete table " + table + "\nadd table " + table,
		"delete table " + table + "\nadd table " + table + "\nadd chain " + table + " services\nadd chain " + table + " service-stranger/x",
		"flush ruleset",
		"flush table " + table,
		"flush chain " + chain, "flush chain " + chain, "insert rule " + chain + " accept", "add rule " + chain + " counter",
		many.String() + "delete table ip stranger",
		many.String() + "delete table ip stranger\ndelete table " + table,
		"add table inet stranger\nadd chain inet stranger c\nflush chain " + chain,
	}
	for _, m := range []string{"service-ips", "service-nodeports", "no-endpoint-services", "no-endpoint-nodeports", "firewall-ips"} {
		all = append(all, "flush map "+table+" "+m)
	}
	for _, s := range []string{"cluster-ips", "hairpin-connections", "nodeport-ips"} {
		all = append(all, "flush set "+table+" "+s)
	}
	all = append(all, "add element "+table+" cluster-ips { "+map[string]string{"ip": "10.43.77.77", "ip6": "fd43::7777"}[family]+" }")
	return all
}

// finerHarm is what only single Services have.
func finerHarm(r *rand.Rand, b *nftables) []string {
	family := []string{"ip", "ip6"}[r.IntN(2)]
	table := family + " kube-proxy"
	var chains []string
	out, _ := exec.Command("nft", "-t", "list", "table", family, "kube-proxy").CombinedOutput()
	for _, line := range strings.Split(string(out), "\n") {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "chain "); ok && strings.Contains(name, "/") {
			chains = append(chains, strings.TrimSuffix(name, " {"))
		}
	}
	all := graveHarm(r, b)
	if len(chains) > 0 {
		c := chains[r.IntN(len(chains))]
		all = append(all, "flush chain "+table+" "+c, "insert rule "+table+" "+c+" accept", "rename chain "+table+" "+c+" service-renamed/x", "rename chain "+table+" "+c+" x")
	}
	return all
}
