// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nfttable"
	"github.com/coracle-k8s/coracle/test/netns"
)

// TestFrame: what another program took out between the writing and the counting is not taken for what was written, and what it did during the counting, so that there is no count, has nothing forgotten.
func TestFrame(t *testing.T) {
	counts := func(n int) frame { return frame{nfttable.Table{Name: "kube-proxy"}: {"services": n}} }
	b := &nftables{}
	for i, step := range []struct{ counted, want frame }{
		{nil, nil}, {counts(2), counts(2)}, {counts(2), counts(2)}, {counts(0), counts(2)}, {counts(2), counts(2)}, {counts(3), counts(2)}, {counts(3), counts(3)}, {nil, counts(3)},
	} {
		if b.learn(step.counted); !maps.EqualFunc(b.frame, step.want, maps.Equal) {
			t.Errorf("step %d: it is %v, want %v", i, b.frame, step.want)
		}
	}
}

// harming does harm to a table as soon as something was written there.
type harming struct {
	knftables.Interface
	t     *testing.T
	harm  string
	times int // how often
}

func (h *harming) Run(ctx context.Context, tx *knftables.Transaction) error {
	err := h.Interface.Run(ctx, tx)
	if err == nil && h.times > 0 {
		h.times--
		nft(h.t, h.harm)
	}
	return err
}

// TestHarmAfterTheFirstWrite: what another program takes out before anybody has looked at what was written is missed all the same, and comes back.
func TestHarmAfterTheFirstWrite(t *testing.T) {
	netns.RequireNFT(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeAddr), Mask: net.CIDRMask(32, 32)}} // so that the set of such has one
	if err := netlink.AddrAdd(lo, addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.AddrDel(lo, addr); err != nil {
			t.Error(err)
		}
	})
	for _, harm := range []string{"flush table ip kube-proxy", "flush chain ip kube-proxy services", "flush set ip kube-proxy nodeport-ips"} {
		t.Run(harm, func(t *testing.T) {
			b := bareNFTables(t, corev1.IPv4Protocol, corev1.IPv6Protocol)
			way := ofProxier[knftables.Interface](t, b, corev1.IPv4Protocol, "nftables")
			*way = &harming{*way, t, harm, 1}
			all := anyServices(rand.New(rand.NewPCG(1, 2)), 5)
			for _, s := range all {
				b.OnServiceAdd(s.service)
				for _, slice := range s.slices {
					b.OnEndpointSliceAdd(slice)
				}
			}
			if err := b.sync(false); err != nil {
				t.Fatal(err)
			}
			if ok, err := b.intact(); err != nil || ok {
				t.Errorf("it is intact: %v, %v", ok, err)
			}
			if err := b.sync(true); err != nil {
				t.Fatal(err)
			}
			if ok, err := b.intact(); err != nil || !ok {
				t.Errorf("it is intact: %v, %v", ok, err)
			}
			if counted := b.countFrame(); !maps.EqualFunc(b.frame, counted, maps.Equal) {
				t.Errorf("the kernel has %v, and it was taken for %v", counted, b.frame)
			}
			wantAsUpstream(t, b, all)
		})
	}
}
