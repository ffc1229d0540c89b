// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestBandwidthIsParsedFromConfiguration(t *testing.T) {
	for _, c := range []struct {
		name, runtimeConfig string
		want                bandwidth
		err                 string
	}{
		{"none", `{}`, bandwidth{}, ""},
		{"empty", `{"bandwidth":{}}`, bandwidth{}, ""},
		{"as containerd spells it", `{"bandwidth":{"IngressRate":1000000,"IngressBurst":4294967295,"EgressRate":0,"EgressBurst":0}}`,
			bandwidth{Ingress: rate{125000, 536870911}}, ""},
		{"both", `{"bandwidth":{"ingressRate":8000,"ingressBurst":80000,"egressRate":1000000000000000,"egressBurst":8}}`,
			bandwidth{rate{1000, 10000}, rate{125e12, 1}}, ""},
		{"no burst", `{"bandwidth":{"ingressRate":8000}}`, bandwidth{},
			"kubernetes.io/ingress-bandwidth: rate 8000 and burst 0: a runtime has to set both or none"},
		{"no rate", `{"bandwidth":{"egressBurst":8000}}`, bandwidth{},
			"kubernetes.io/egress-bandwidth: rate 0 and burst 8000: a runtime has to set both or none"},
		{"too small", `{"bandwidth":{"egressRate":999,"egressBurst":8000}}`, bandwidth{},
			"kubernetes.io/egress-bandwidth: 999 bit/s is unreasonably small, the least is 1k"},
		{"too large", `{"bandwidth":{"ingressRate":1000000000000001,"ingressBurst":8000}}`, bandwidth{},
			"kubernetes.io/ingress-bandwidth: 1000000000000001 bit/s is unreasonably large, the most is 1P"},
		{"burst too large", `{"bandwidth":{"ingressRate":8000,"ingressBurst":34359738368}}`, bandwidth{},
			"kubernetes.io/ingress-bandwidth: a burst of 34359738368 bits: it has to be below 4 GiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := testenv.Must(parseConf([]byte(`{"cniVersion":"1.1.0","runtimeConfig":` + c.runtimeConfig + `}`)))(t)
			got, err := conf.bandwidth()
			testenv.Equal(t, got, c.want, "")
			var e *wire.Error
			switch {
			case c.err == "" && err != nil, c.err != "" && err == nil:
				t.Errorf("got error %v, want %q", err, c.err)
			case c.err != "" && (!errors.As(err, &e) || e.Code != wire.CodeInvalidConfig || e.Msg != c.err):
				t.Errorf("got %v, want code %d and %q", err, wire.CodeInvalidConfig, c.err)
			}
		})
	}
}

func TestDesiredBandwidthRendersShapers(t *testing.T) {
	const unbounded = 1<<29 - 1 // containerd's
	for _, c := range []struct {
		name   string
		limits bandwidth
		mtu    int
		want   string
	}{
		{"none", bandwidth{}, 1500, ""},
		{"the least, at jumbo frames", bandwidth{Ingress: rate{125, unbounded}}, 9000, `
shaper dev vethcora rate 1000bit burst 18128 limit 149200
`},
		{"both, with a burst that the runtime wants smaller than one packet", bandwidth{rate{125_000_000, 1}, rate{12_500_000, unbounded}}, 1400, `
shaper dev vethcora rate 1000000000bit burst 16384 limit 6266384
link ifbcora7tnbd4j ifb mtu 1400 up
shaper dev ifbcora7tnbd4j rate 100000000bit burst 250000 limit 875000
redirect dev vethcora to ifbcora7tnbd4j
`},
		{"the most", bandwidth{Egress: rate{125e12, unbounded}}, 1500, `
link ifbcora7tnbd4j ifb mtu 1500 up
shaper dev ifbcora7tnbd4j rate 1000000000000000bit burst 8388608 limit 41943040
redirect dev vethcora to ifbcora7tnbd4j
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := testAttachment("a", "10.42.7.2")
			r.Bandwidth = c.limits
			var got []string
			for _, o := range desiredBandwidth(r, c.mtu) {
				got = append(got, strings.ReplaceAll(o.String(), shaperName(r.key()), "ifbcora7tnbd4j"))
			}
			if g, w := strings.Join(got, "\n"), strings.TrimSpace(c.want); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
		})
	}
}

// limited is a pod's sandbox with a runtime's wishes in bits per second.
func (n *node) limited(id string, ingress, egress uint64) *pod {
	n.t.Helper()
	p := n.sandbox(id)
	limits := map[string]uint64{}
	for name, r := range map[string]uint64{"Ingress": ingress, "Egress": egress} {
		if r > 0 {
			limits[name+"Rate"], limits[name+"Burst"] = r, 1<<32-1
		}
	}
	p.rt.CapabilityArgs["bandwidth"] = limits
	return p
}

// limits renders what the kernel has of a pod's limits.
func (n *node) limits(p *pod) string {
	n.t.Helper()
	k := key{p.id, "eth0"}
	have := testenv.Must(newKernel().observe(Bridge, nil))(n.t)
	var out []string
	for _, o := range have {
		switch o.(type) {
		case shaper, redirect:
		case link:
			if !strings.HasPrefix(o.id(), "link "+shaperPrefix) {
				continue
			}
		default:
			continue
		}
		if s := o.String(); strings.Contains(s, deviceName(k)) || strings.Contains(s, shaperName(k)) {
			out = append(out, strings.NewReplacer(deviceName(k), "VETH", shaperName(k), "IFB").Replace(s))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func TestBandwidthIsLimitedBothWays(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56").ready("10.42.7.0/24", "fd42:0:0:7::/64")
	free, both, in := n.pod("free"), n.limited("both", 80e6, 8e6), n.limited("in", 8e9, 0)
	for _, p := range []*pod{both, in} {
		testenv.NoError(t, n.add(p))
	}
	const wantBoth = `link IFB ifb mtu 1500 up
redirect dev VETH to IFB
shaper dev IFB rate 8000000bit burst 20000 limit 151072
shaper dev VETH rate 80000000bit burst 200000 limit 700000`
	const wantIn = `shaper dev VETH rate 8000000000bit burst 8388608 limit 41943040`
	asWanted := func(when string) {
		t.Helper()
		for p, want := range map[*pod]string{free: "", both: wantBoth, in: wantIn} {
			// The kernel rounds a burst down.
			got := strings.NewReplacer("burst 19999 ", "burst 20000 ", "burst 199999 ", "burst 200000 ", "burst 8388607 ", "burst 8388608 ").Replace(n.limits(p))
			testenv.Equal(t, got, want, "%s, limits of pod %s:", when, p.id)
		}
		for _, ip := range both.ips {
			expect(t, free, when+", pod to a limited one", net.JoinHostPort(ip, "80"), "both "+free.ips[slices.Index(both.ips, ip)])
		}
		for _, ip := range free.ips {
			expect(t, both, when+", a limited pod to another", net.JoinHostPort(ip, "80"), "free "+both.ips[slices.Index(free.ips, ip)])
		}
	}
	serve(t, both, "both", "tcp", ":80")
	serve(t, free, "free", "tcp", ":80")
	asWanted("after ADD")

	n.stop()
	n.start()
	n.waitReady()
	asWanted("after a restart")

	for name, harm := range map[string]func() error{
		"the device of egress is removed":  func() error { return removeDevice(shaperName(key{"both", "eth0"})) },
		"the queue of ingress is removed":  func() error { return onDevice(deviceName(key{"in", "eth0"}), removeShaper) },
		"the redirection is removed":       func() error { return onDevice(deviceName(key{"both", "eth0"}), removeRedirect) },
		"another rate is set":              func() error { return onDevice(deviceName(key{"in", "eth0"}), otherRate) },
		"a limit is set that no pod wants": func() error { return onDevice(deviceName(key{"free", "eth0"}), otherRate) },
	} {
		if err := harm(); err != nil {
			t.Fatal(name, ": ", err)
		}
		n.untilHealed(name)
		asWanted(name)
	}

	n.del(both)
	testenv.Equal(t, n.limits(both), "", "after DEL there is")
	testenv.Fails(t, testenv.Err(netlink.LinkByName(shaperName(key{"both", "eth0"}))), "after DEL the device of the pod's egress is still there")
}

func onDevice(name string, do func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return do(l)
}

func otherRate(l netlink.Link) error {
	return setShaper(l, shaper{rate: 1000, burst: 20000, limit: 30000})
}

// untilHealed waits until the host's side is what the attachments want.
func (n *node) untilHealed(what string) {
	n.t.Helper()
	eventually(n.t, func() error {
		nw := n.server.network.Load()
		if nw == nil {
			return fmt.Errorf("%s: not ready", what)
		}
		in := hostInput{bridge: Bridge, mtu: nw.mtu, podCIDRs: nw.podCIDRs, serviceCIDRs: n.o.ServiceCIDRs, pods: n.server.attachments.list()}
		have, err := newKernel().observe(Bridge, nil)
		if err != nil {
			return err
		}
		ensure, remove := difference(desiredHost(in), have)
		ensure = slices.DeleteFunc(ensure, func(w desiredObject) bool { _, ok := w.object.(sysctl); return ok })
		if len(ensure)+len(remove) > 0 {
			return fmt.Errorf("%s: still to do %v, to remove %v", what, ensure, remove)
		}
		return nil
	})
}

// TestBandwidthLimitDelaysPackets sends more at once than a second's rate through both shapers and finds packets that
// had to wait. The rate is so low that a machine would have to need most of a minute for 64 datagrams to keep within
// it.
func TestBandwidthLimitDelaysPackets(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	const bits = 8000
	slow := n.limited("slow", bits, bits)
	testenv.NoError(t, n.add(slow))
	k := key{"slow", "eth0"}
	for _, c := range []struct {
		what, device, to string
		from, at         netns.Doer
	}{
		{"ingress", deviceName(k), slow.ips[0] + ":5000", here{}, slow},
		{"egress", shaperName(k), "10.42.7.1:5000", slow, here{}},
	} {
		inbox := netns.ListenPacket(t, c.at, "udp", c.to)
		if err := c.from.Do(func() error {
			conn, err := net.Dial("udp", c.to)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			for range 64 {
				if _, err := conn.Write(make([]byte, 1000)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(c.what, ": ", err)
		}
		_ = inbox.SetReadDeadline(time.Now().Add(2 * time.Minute))
		if _, _, err := inbox.ReadFrom(make([]byte, 2000)); err != nil {
			t.Errorf("%s: nothing arrived: %v", c.what, err)
		}
		testenv.True(t, heldBack(t, c.device) != 0, "%s: no packet had to wait at %d bit/s", c.what, bits)
	}
}

// heldBack is how often the device's token bucket had no tokens for a packet.
func heldBack(t *testing.T, device string) uint32 {
	t.Helper()
	l := testenv.Must(netlink.LinkByName(device))(t)
	qdiscs := testenv.Must(netlink.QdiscList(l))(t)
	for _, q := range qdiscs {
		if q, ok := q.(*netlink.Tbf); ok && q.Statistics != nil && q.Statistics.Queue != nil {
			return q.Statistics.Queue.Overlimits
		}
	}
	t.Fatalf("no token bucket on %s among %v", device, qdiscs)
	return 0
}

func TestBandwidthThatCannotBe(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	p := n.limited("tiny", 1, 0)
	wantCode(t, n.add(p), wire.CodeInvalidConfig, "kubernetes.io/ingress-bandwidth: 1 bit/s is unreasonably small")
	if entries, err := os.ReadDir(filepath.Join(n.o.StateDir, "sandboxes")); err != nil || len(entries) > 0 {
		t.Errorf("a refused pod left records: %v, %v", entries, err)
	}
}
