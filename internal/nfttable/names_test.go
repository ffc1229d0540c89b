// SPDX-License-Identifier: Apache-2.0

package nfttable

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// anyTransaction is one of anybody's, that the kernel need not take: of the table that is followed, of its namesake in the other family, or of another one.
func anyTransaction(r *rand.Rand) string {
	lines := []string{"add table ip t\nadd table ip6 t\nadd table ip u"}
	for range 1 + r.IntN(3) {
		table := []string{"ip t", "ip t", "ip t", "ip6 t", "ip u"}[r.IntN(5)]
		chain, other, set := fmt.Sprint(table, " c", r.IntN(5)), fmt.Sprint("c", r.IntN(5)), fmt.Sprint(table, " s", r.IntN(4))
		statements := []string{
			"add table " + table,
			"add chain " + chain, "add chain " + chain, "add chain " + chain + "\nadd chain " + table + " " + other, "delete chain " + chain, "rename chain " + chain + " " + other, "flush chain " + chain,
			"add chain " + table + " base { type filter hook input priority 0; }", "delete chain " + table + " base",
			"add set " + set + " { type inet_service; }", "add set " + set + " { type ipv4_addr; flags dynamic,timeout; timeout 60s; }", "delete set " + set,
			"add map " + set + " { type inet_service : verdict; }", "delete map " + set,
			"add chain " + chain + "\nadd rule " + chain + " tcp dport { 80, 81 } accept", "add chain " + chain + "\nadd rule " + chain + " tcp dport vmap { 80 : accept, 81 : drop }",
			"add rule " + chain + " jump " + other, "flush table " + table,
		}
		if i := r.IntN(len(statements) + 1); i < len(statements) {
			lines = append(lines, statements[i])
		} else { // what ends everything is rare
			lines = append(lines, []string{"delete table " + table, "delete table " + table + "\nadd table " + table + "\nadd chain " + chain, "flush ruleset"}[r.IntN(3)])
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

func run(transaction string) bool {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(transaction)
	return cmd.Run() == nil
}

// followed is a Names with a small socket, and what the kernel says to those who ask it.
func followed(t *testing.T) (*Names, func(when string)) {
	t.Helper()
	n, err := FollowNames(Table{IPv4, "t"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Close()
		run("flush ruleset\n")
	})
	if err := unix.SetsockoptInt(n.socket, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<16); err != nil {
		t.Fatal(err)
	}
	kernel, err := knftables.New(knftables.IPv4Family, "t", knftables.UseNetlink)
	if err != nil {
		t.Fatal(err)
	}
	return n, func(when string) {
		t.Helper()
		chains, err := n.Chains()
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		sets, err := n.Sets()
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		wantChains, err := kernel.List(t.Context(), "chain")
		if err != nil {
			t.Fatal(err)
		}
		wantSets, err := kernel.List(t.Context(), "set")
		if ok, _ := Exists(n.table); ok && err != nil {
			t.Fatal(err)
		}
		wantSets = slices.DeleteFunc(wantSets, func(name string) bool { return strings.HasPrefix(name, "__set") }) // of a rule
		for _, c := range []struct{ have, want []string }{{chains, wantChains}, {sets, wantSets}} {
			slices.Sort(c.have)
			slices.Sort(c.want)
			if !slices.Equal(c.have, c.want) {
				t.Fatalf("%s: it is %q, and the kernel says %q", when, c.have, c.want)
			}
		}
	}
}

// TestNames: whoever changes whatever, the names are the kernel's, and they are read whole no more often than they have to be.
func TestNames(t *testing.T) {
	netns.RequireNFT(t)
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	n, compare := followed(t)
	var great strings.Builder
	great.WriteString("add table ip t\n")
	for i := range 3000 {
		fmt.Fprintf(&great, "add chain ip t a-chain-with-a-name-as-long-as-a-Service-has-%d\n", i)
	}
	compare("at first")
	const steps = 150
	taken, reads := 0, 1
	for i := range steps {
		what := anyTransaction(r)
		if i%50 == 25 {
			what = great.String() // more than fits into the socket
		}
		if run(what) {
			taken++
		}
		switch r.IntN(10) {
		case 0:
			n.Forget()
			reads++
		case 1:
			if err := n.Hear(); err != nil {
				t.Fatal(err)
			}
		}
		switch {
		case i%50 == 25:
			before := n.reads
			compare("after more than fits into the socket")
			if n.reads != before+1 {
				t.Errorf("there was more than fits into the socket, and all was read %d times", n.reads-before)
			}
			if !run("delete table ip t\n") {
				t.Fatal("the table cannot be deleted")
			}
			compare("after all that is gone")
			reads += 2
		case r.IntN(2) == 0:
			compare(fmt.Sprintf("after step %d, %q", i, what))
		}
	}
	compare("at the end")
	t.Logf("%d of %d transactions were taken; all was read %d times", taken, steps, n.reads)
	if taken < steps/5 || n.reads > reads {
		t.Errorf("%d of %d transactions were taken; all was read %d times, and need be %d times at most", taken, steps, n.reads, reads)
	}
}

// TestNamesWhileOthersWrite: what changes while all is read is not lost.
func TestNamesWhileOthersWrite(t *testing.T) {
	netns.RequireNFT(t)
	seed := testenv.Seed(t)
	n, compare := followed(t)
	for round := range 4 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			r := rand.New(rand.NewPCG(seed, uint64(round)))
			for range 15 {
				run(anyTransaction(r))
			}
		}()
		for over := false; !over; {
			select {
			case <-done:
				over = true
			default:
				n.Forget()
				if _, err := n.Chains(); err != nil {
					t.Log(err) // they changed faster than they could be read
				}
			}
		}
		compare(fmt.Sprint("after round ", round))
	}
}

func TestNamesAfterClose(t *testing.T) {
	netns.Require(t)
	n, err := FollowNames(Table{IPv4, "t"})
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	n.Close()
	if chains, err := n.Chains(); err == nil {
		t.Errorf("it knows of %q", chains)
	}
	if sets, err := n.Sets(); err == nil {
		t.Errorf("it knows of %q", sets)
	}
}
