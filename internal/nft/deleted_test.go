// SPDX-License-Identifier: Apache-2.0

package nft_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// hear runs what listens until the test ends.
func hear(t *testing.T, gone func(), tables ...nft.Table) {
	t.Helper()
	d := testenv.Must(nft.WatchDeletions(tables...))(t)
	testenv.Run(t, func(ctx context.Context) error { return d.Run(ctx, gone) })
}

func TestDeletionsAreHeard(t *testing.T) {
	netns.RequireNFT(t)
	watched, same, other := nft.Table{nft.INet, "ours"}, nft.Table{nft.IPv4, "ours"}, nft.Table{nft.INet, "other"}
	heard := make(chan string, 100) // more than there will be
	hear(t, func() { heard <- "ours" }, watched)
	hear(t, func() { heard <- "both" }, watched, other)
	expect := func(want ...string) {
		t.Helper()
		for range want {
			select {
			case w := <-heard:
				testenv.True(t, strings.Contains(fmt.Sprint(want), w), "heard %q, want %v", w, want)
			case <-time.After(2 * time.Minute):
				t.Fatalf("nothing is heard, want %v", want)
			}
		}
	}
	for _, table := range []nft.Table{watched, same, other} {
		testenv.NoError(t, nft.Ensure(table))
	}
	for _, table := range []nft.Table{same, other, watched} {
		testenv.NoError(t, nft.Delete(table))
	}
	expect("both", "both", "ours") // which is all: the one that hears ours alone heard of no other before

	// A table with much in it is reported in many pieces.
	var elements []string
	for i := range 1000 {
		elements = append(elements, fmt.Sprintf("10.0.%d.%d", i/250, i%250))
	}
	for _, way := range []string{"flush ruleset", "delete table inet ours", "delete table inet ours; add table inet ours"} {
		netns.NFT(t, "add table inet ours; add set inet ours s { type ipv4_addr; }; add chain inet ours c { type filter hook forward priority 0; }; add rule inet ours c ip saddr @s drop; "+
			"add element inet ours s { "+strings.Join(elements, ",")+" }")
		netns.NFT(t, way)
		expect("both", "ours")
	}
}

// TestUnheardDeletions: after too many messages at once the table is read.
func TestUnheardDeletions(t *testing.T) {
	netns.RequireNFT(t)
	d := testenv.Must(nft.WatchDeletions(nft.Table{nft.INet, "ours"}))(t)
	var text strings.Builder
	for i := range 3000 { // while they are not read
		fmt.Fprintf(&text, "add table inet x%d\nadd chain inet x%d c\nadd rule inet x%d c drop\n", i, i, i)
	}
	for _, in := range []string{text.String(), "flush ruleset"} {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(in)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	notified := false
	if err := d.Run(ctx, func() { notified = true; cancel() }); err != nil || !notified {
		t.Errorf("notified: %v, %v", notified, err)
	}
}
