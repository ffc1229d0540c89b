// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var (
	own, other = hw{2, 0, 0, 0, 0, 1}, hw{2, 0, 0, 0, 0, 2}
	v4, v6     = netip.MustParseAddr("10.0.0.100"), netip.MustParseAddr("fd00::100")
	peer4      = netip.MustParseAddr("10.0.0.2")
	peer6      = netip.MustParseAddr("fe80::2")
	four       = neighbour{address: v4, own: own}
	six        = neighbour{address: v6, own: own, from: netip.MustParseAddr("fe80::1")}
)

// A question as a Linux kernel sent it, and what it takes for an answer; both were captured on a veth pair.
func TestARPOnTheWire(t *testing.T) {
	question := testenv.Must(hex.DecodeString(strings.ReplaceAll("ffffffffffff 020000000002 0806 0001 0800 06 04 0001 020000000002 0a000002 000000000000 0a000064", " ", "")))(t)
	want := testenv.Must(hex.DecodeString(strings.ReplaceAll("020000000002 020000000001 0806 0001 0800 06 04 0002 020000000001 0a000064 020000000002 0a000002", " ", "")))(t)
	got := four.hear(question).answer
	testenv.False(t, len(got) != minFrame || !bytes.Equal(got[:arpLen], want), "answered\n%x, want\n%x", got, want)
}

func TestARPRequestsAreAnswered(t *testing.T) {
	ask := arp{op: opRequest, senderHW: other, sender: peer4, target: v4}
	with := func(change func(*arp)) []byte {
		p := ask
		change(&p)
		return p.frame(broadcast)
	}
	for _, tt := range []struct {
		name     string
		frame    []byte
		answered bool
		claimant hw
	}{
		{"a question", with(func(*arp) {}), true, noHW},
		{"a machine that looks whether the address is free", with(func(p *arp) { p.sender = netip.IPv4Unspecified() }), true, noHW},
		{"a question for another address", with(func(p *arp) { p.target = peer4.Next() }), false, noHW},
		{"this machine's own question", with(func(p *arp) { p.senderHW = own }), false, noHW},
		{"this machine's own announcement, reflected", with(func(p *arp) { p.senderHW, p.sender = own, v4 }), false, noHW},
		{"another one's announcement", with(func(p *arp) { p.sender = v4 }), false, other},
		{"another one's answer", with(func(p *arp) { p.op, p.sender, p.target = opReply, v4, peer4 }), false, other},
		{"an answer to another machine", with(func(p *arp) { p.op = opReply }), false, noHW},
		{"a question from a group", with(func(p *arp) { p.senderHW = broadcast }), false, noHW},
		{"a question without a sender", with(func(p *arp) { p.senderHW = noHW }), false, noHW},
		{"another operation", with(func(p *arp) { p.op = 3 }), false, noHW},
		{"half a packet", with(func(*arp) {})[:arpLen-1], false, noHW},
		{"nothing", nil, false, noHW},
	} {
		h := four.hear(tt.frame)
		testenv.True(t, (h.answer != nil) == tt.answered && h.conflicting == tt.claimant,
			"%s: answer %x, claimant %x", tt.name, h.answer, h.conflicting)
	}
}

func TestNeighborSolicitationsAreAnswered(t *testing.T) {
	ask := ndp{kind: typeNS, from: peer6, to: solicited(v6), fromHW: other, target: v6, linkHW: other}
	with := func(change func(*ndp)) []byte {
		m := ask
		change(&m)
		return m.frame(groupHW(m.to))
	}
	damaged := with(func(*ndp) {})
	damaged[len(damaged)-1] ^= 1
	routed := with(func(*ndp) {})
	routed[etherLen+7] = 254
	advert := func(m *ndp) { m.kind, m.to = typeNA, allNodes }
	for _, tt := range []struct {
		name     string
		frame    []byte
		to       netip.Addr // of the answer
		flags    uint32
		claimant hw
	}{
		{"a question", with(func(*ndp) {}), peer6, flagSolicit | flagOverride, noHW},
		{"a question whether it is still there", with(func(m *ndp) { m.to, m.linkHW = v6, noHW }), peer6, flagSolicit | flagOverride, noHW},
		{"a machine that looks whether the address is free", with(func(m *ndp) { m.from, m.linkHW = netip.IPv6Unspecified(), noHW }), allNodes, flagOverride, noHW},
		{"another one's advertisement", with(advert), netip.Addr{}, 0, other},
		{"another address", with(func(m *ndp) { m.target = peer6 }), netip.Addr{}, 0, noHW},
		{"this machine's own", with(func(m *ndp) { m.fromHW, m.linkHW = own, own }), netip.Addr{}, 0, noHW},
		{"a damaged message", damaged, netip.Addr{}, 0, noHW},
		{"a message that was routed", routed, netip.Addr{}, 0, noHW},
		{"half a message", with(func(*ndp) {})[:etherLen+ip6Len+10], netip.Addr{}, 0, noHW},
	} {
		h := six.hear(tt.frame)
		if h.conflicting != tt.claimant || (h.answer != nil) != tt.to.IsValid() {
			t.Errorf("%s: answer %x, claimant %x", tt.name, h.answer, h.conflicting)
			continue
		}
		if h.answer == nil {
			continue
		}
		m, ok := parseNDP(h.answer)
		if want := (ndp{kind: typeNA, from: six.from, to: tt.to, fromHW: own, flags: tt.flags, target: v6, linkHW: own}); !ok || m != want {
			t.Errorf("%s: answered %+v, want %+v", tt.name, m, want)
		}
	}
	if solicited(v6) != netip.MustParseAddr("ff02::1:ff00:100") || groupHW(solicited(v6)) != (hw{0x33, 0x33, 0xff, 0, 1, 0}) {
		t.Errorf("questions go to %s, %x", solicited(v6), groupHW(solicited(v6)))
	}
}

// What one machine announces and asks, another one understands: as a claim, and as a question.
func TestAnnouncementsAndProbes(t *testing.T) {
	for _, n := range []neighbour{four, six} {
		rival := n
		rival.own = other
		for i, frame := range n.announcements() {
			if h := rival.hear(frame); h.conflicting != own || h.answer != nil {
				t.Errorf("announcement %d of %s: %+v", i, n.address, h)
			}
		}
		if h := rival.hear(n.probe()); h.answer == nil || h.conflicting != noHW {
			t.Errorf("a probe for %s: %+v", n.address, h)
		} else if back := n.hear(h.answer); back.conflicting != other {
			t.Errorf("the answer to a probe for %s: %+v", n.address, back)
		}
	}
}

// Whatever comes in, nothing breaks, and what is answered is a frame from this machine to one that asked or to all
// nodes.
func FuzzFrames(f *testing.F) {
	for _, n := range []neighbour{four, six} {
		rival := n
		rival.own = other
		f.Add(rival.probe())
		for _, frame := range rival.announcements() {
			f.Add(frame)
		}
	}
	f.Add(ndp{kind: typeNS, from: peer6, to: solicited(v6), fromHW: other, target: v6, linkHW: other}.frame(groupHW(solicited(v6))))
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, n := range []neighbour{four, six} {
			h := n.hear(frame)
			testenv.False(t, h.conflicting != noHW && (h.conflicting == own || h.answer != nil),
				"claimed by %x, answered %x", h.conflicting, h.answer)
			if h.answer == nil {
				continue
			}
			testenv.False(t, hw(h.answer[6:12]) != own || hw(h.answer[:6]) == own || len(h.answer) > 128, "answered %x", h.answer)
			if to := hw(h.answer[:6]); !to.single() && to != groupHW(allNodes) {
				t.Errorf("answered everybody: %x", h.answer)
			}
		}
		if m, ok := parseNDP(frame); ok {
			if _, again := parseNDP(m.frame(broadcast)); !again {
				t.Errorf("%+v is not understood when it is written again", m)
			}
		}
	})
}
