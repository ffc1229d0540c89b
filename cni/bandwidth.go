// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/internal/netlinkutil"
)

// A pod's bandwidth is limited on the host, where the pod cannot remove the limit. A token bucket (tc-tbf(8)) at the
// host's end of the pair limits what the pod receives. A device has a queue for sent packets only. So the pod's sent
// packets are redirected from the host's end to an ifb device, leave that by another token bucket, and continue as if
// they had just arrived. docs/adr/0020 has the alternatives.

const (
	kindIFB = "ifb"

	// shaperPrefix starts the name of the ifb devices for limited egress.
	shaperPrefix = "ifbcor"

	annotationIngress = "kubernetes.io/ingress-bandwidth"
	annotationEgress  = "kubernetes.io/egress-bandwidth"

	// Bounds of a rate in bits per second. They are Kubernetes' own.
	minRate = 1_000
	maxRate = 1_000_000_000_000_000
)

// shaperName returns the name of the device that limits the attachment's egress.
func shaperName(k key) string { return shaperPrefix + deviceHash(k) }

// askedBandwidth is the runtime's value of the capability "bandwidth" (CNI conventions). Rates are in bits per second,
// 0 means no limit, and bursts are in bits.
type askedBandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// bandwidth holds the limits of a pod's traffic in each direction.
type bandwidth struct {
	Ingress rate `json:"ingress,omitzero"`
	Egress  rate `json:"egress,omitzero"`
}

// rate is a limit in bytes per second, 0 for none. Burst is the most that the runtime lets pass at once, in bytes.
type rate struct {
	Bytes uint64 `json:"bytes"`
	Burst uint64 `json:"burst"`
}

// bandwidth returns the limits that the runtime passes for the pod. It fails if one is invalid.
func (c pluginConf) bandwidth() (bandwidth, error) {
	asked := c.RuntimeConfig.Bandwidth
	if asked == nil {
		return bandwidth{}, nil
	}
	in, inErr := newRate(annotationIngress, asked.IngressRate, asked.IngressBurst)
	out, outErr := newRate(annotationEgress, asked.EgressRate, asked.EgressBurst)
	if err := errors.Join(inErr, outErr); err != nil {
		return bandwidth{}, wire.Errorf(wire.CodeInvalidConfig, "%v", err)
	}
	return bandwidth{in, out}, nil
}

func newRate(annotation string, bits, burst uint64) (rate, error) {
	switch {
	case bits == 0 && burst == 0:
		return rate{}, nil
	case bits == 0 || burst == 0:
		return rate{}, fmt.Errorf("%s: rate %d and burst %d: a runtime has to set both or none", annotation, bits, burst)
	case bits < minRate:
		return rate{}, fmt.Errorf("%s: %d bit/s is unreasonably small, the least is 1k", annotation, bits)
	case bits > maxRate:
		return rate{}, fmt.Errorf("%s: %d bit/s is unreasonably large, the most is 1P", annotation, bits)
	case burst/8 >= math.MaxUint32:
		return rate{}, fmt.Errorf("%s: a burst of %d bits: it has to be below 4 GiB", annotation, burst)
	}
	return rate{bits / 8, burst / 8}, nil
}

// shaper is a token bucket at a device. It lets rate bytes per second pass, and burst bytes at once. It delays at most
// limit bytes and drops the others.
type shaper struct {
	device       string
	rate         uint64
	burst, limit uint32
}

func (s shaper) id() string { return "shaper dev " + s.device }

func (s shaper) String() string {
	return s.id() + " rate " + strconv.FormatUint(s.rate*8, 10) + "bit burst " + fmt.Sprint(s.burst) + " limit " + fmt.Sprint(s.limit)
}

// satisfiedBy tolerates the kernel's rounding: the kernel stores the burst as its duration, in ticks of 64 ns.
func (s shaper) satisfiedBy(have object) bool {
	h, ok := have.(shaper)
	off := int64(h.burst) - int64(s.burst)
	return ok && h.rate == s.rate && h.limit == s.limit && uint64(max(off, -off)) <= uint64(s.burst)/100+s.rate/1e7
}

// redirect redirects all packets that arrive at a device to another one.
type redirect struct{ device, target string }

func (r redirect) id() string     { return "redirect dev " + r.device }
func (r redirect) String() string { return r.id() + " to " + r.target }

// desiredBandwidth computes the host's side of a pod's limits. It is pure.
func desiredBandwidth(r *attachment, mtu int) []object {
	var out []object
	if r.Bandwidth.Ingress.Bytes > 0 {
		out = append(out, newShaper(r.HostDevice, r.Bandwidth.Ingress, mtu))
	}
	if r.Bandwidth.Egress.Bytes > 0 {
		via := shaperName(r.key())
		out = append(out, link{name: via, kind: kindIFB, mtu: mtu, up: true},
			newShaper(via, r.Bandwidth.Egress, mtu), redirect{r.HostDevice, via})
	}
	return out
}

// newShaper chooses burst and queue. A runtime's burst is only an upper bound: containerd always sends half a gigabyte,
// and until that had passed a pod would have no limit at all. The kernel can keep the rate with a burst of 20 ms. A
// packet that is larger than the burst would never pass. (One that waits for segmentation is segmented then.) The queue
// holds 50 ms.
func newShaper(device string, r rate, mtu int) shaper {
	const headers = 64 // Ethernet and VLANs
	least := uint64(max(16<<10, 2*(mtu+headers)))
	burst := max(min(r.Bytes/50, 8<<20, r.Burst), least)
	queue := min(max(r.Bytes/20, 128<<10), 32<<20)
	return shaper{device: device, rate: r.Bytes, burst: uint32(burst), limit: uint32(burst + queue)}
}

// handleRoot and handleIngress are the handles by which we recognise our queueing disciplines.
var (
	handleRoot    = netlink.MakeHandle(0xc0ac, 0)
	handleIngress = netlink.MakeHandle(0xffff, 0) // the kernel's only handle for ingress
)

// observeBandwidth reads the shapers and redirections of our devices.
func observeBandwidth(ownLinks map[int]string, put func(object)) error {
	qdiscs, err := netlinkutil.ConsistentList(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(nil) })
	if err != nil {
		return fmt.Errorf("listing queueing disciplines: %w", err)
	}
	for _, q := range qdiscs {
		a := q.Attrs()
		device := ownLinks[a.LinkIndex]
		if device == "" {
			continue
		}
		switch q := q.(type) {
		case *netlink.Tbf:
			if a.Handle == handleRoot {
				burst := math.Round(float64(q.Buffer) / netlink.TickInUsec() / netlink.TIME_UNITS_PER_SEC * float64(q.Rate))
				put(shaper{device, q.Rate, uint32(min(burst, math.MaxUint32)), q.Limit})
			}
		case *netlink.Ingress:
			to, err := redirection(a.LinkIndex)
			if err != nil {
				return err
			}
			if to := ownLinks[to]; to != "" {
				put(redirect{device, to})
			}
		}
	}
	return nil
}

// redirection returns the index of the device to which all packets that arrive at another one are redirected, or 0.
func redirection(index int) (int, error) {
	filters, err := netlinkutil.ConsistentList(func() ([]netlink.Filter, error) {
		return netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, handleIngress)
	})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return 0, nil // the pod is being removed at this moment
	}
	if err != nil {
		return 0, fmt.Errorf("listing a device's filters: %w", err)
	}
	for _, f := range filters {
		if u, ok := f.(*netlink.U32); ok && u.RedirIndex > 0 {
			return u.RedirIndex, nil
		}
	}
	return 0, nil
}

// setShaper makes or changes the token bucket. The library's request has the burst as a duration of at most four
// seconds, which is less than one packet at a low rate. This request has it in bytes.
func setShaper(l netlink.Link, s shaper) error {
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	parms := nl.TcTbfQopt{Limit: s.limit, Rate: nl.TcRateSpec{Rate: uint32(min(s.rate, math.MaxUint32))}}
	options.AddRtAttr(nl.TCA_TBF_PARMS, parms.Serialize())
	options.AddRtAttr(nl.TCA_TBF_BURST, nl.Uint32Attr(s.burst))
	if s.rate > math.MaxUint32 {
		options.AddRtAttr(nl.TCA_TBF_RATE64, nl.Uint64Attr(s.rate))
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(l.Attrs().Index), Handle: handleRoot, Parent: netlink.HANDLE_ROOT})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("tbf")))
	req.AddData(options)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("this kernel has no token buckets, which the annotations %s and %s need: load its module sch_tbf, or remove "+
			"the annotations: %w",
			annotationIngress, annotationEgress, err)
	}
	return err
}

func removeShaper(l netlink.Link) error {
	return netlink.QdiscDel(&netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: handleRoot,
		Parent: netlink.HANDLE_ROOT}})
}

func ingress(l netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: handleIngress,
		Parent: netlink.HANDLE_INGRESS}}
}

func setRedirect(l, to netlink.Link) error {
	if err := removeRedirect(l); err != nil { // one that leads to another device
		return err
	}
	if err := netlink.QdiscAdd(ingress(l)); err != nil {
		return fmt.Errorf("the ingress of the pod's device (kernel module sch_ingress; has another program one there?): %w", err)
	}
	err := netlink.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: handleIngress, Priority: 1, Protocol: unix.ETH_P_ALL},
		RedirIndex:  to.Attrs().Index,
	})
	if err != nil {
		return fmt.Errorf("the filter (kernel modules cls_u32, act_mirred): %w", err)
	}
	return nil
}

// removeRedirect removes the redirection of the packets that arrive at a device, if there is one.
func removeRedirect(l netlink.Link) error {
	err := netlink.QdiscDel(ingress(l))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
