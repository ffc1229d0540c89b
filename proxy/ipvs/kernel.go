// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// Real is a real server of a virtual server, as the kernel has it.
type Real struct {
	Addr   netip.AddrPort
	Weight int
	// Connections is the number of active and inactive connections. The latter were closed by one side only, or lately.
	Connections int
}

// Table is our virtual servers in the kernel's IPVS. It does not return those without our flag.
type Table interface {
	Servers() (map[Key]Server, error)
	Reals(Key) ([]Real, error)
	// AddServer and UpdateServer return errNoScheduler where the kernel lacks the scheduler.
	AddServer(Key, Server) error
	UpdateServer(Key, Server) error
	DeleteServer(Key) error
	AddReal(Key, netip.AddrPort) error // with weight 1
	SetWeight(Key, netip.AddrPort, int) error
	DeleteReal(Key, netip.AddrPort) error
}

// errNoScheduler means that the kernel neither has the scheduler nor could load it.
var errNoScheduler = errors.New("the kernel has no such scheduler (the module ip_vs_ with its name)")

// schedulerError converts the kernel's ENOENT to errNoScheduler. When a virtual server is added or changed the kernel
// returns it for one other reason only (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_add_service and ip_vs_edit_service): a
// missing persistence engine, and none is requested.
func schedulerError(err error, s Server) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %s", errNoScheduler, s.Scheduler)
	}
	return err
}

// kernel is the Table of the network namespace in which it was opened.
type kernel struct {
	h      *moby.Handle
	family uint16
}

var _ Table = (*kernel)(nil)

// openKernel opens IPVS, and makes the kernel load it where it can.
func openKernel(family corev1.IPFamily) (*kernel, error) {
	h, err := moby.New("")
	if err != nil {
		return nil, fmt.Errorf("opening IPVS: %w", err)
	}
	k := &kernel{h: h, family: unix.AF_INET}
	if family == corev1.IPv6Protocol {
		k.family = unix.AF_INET6
	}
	if _, err := h.GetServices(); err != nil {
		h.Close()
		return nil, fmt.Errorf("the kernel has no IPVS (the module ip_vs): %w", err)
	}
	return k, nil
}

func (k *kernel) close() { k.h.Close() }

var (
	protocols = map[corev1.Protocol]uint16{corev1.ProtocolTCP: unix.IPPROTO_TCP, corev1.ProtocolUDP: unix.IPPROTO_UDP,
		corev1.ProtocolSCTP: unix.IPPROTO_SCTP}
	protocolNames = map[uint16]corev1.Protocol{unix.IPPROTO_TCP: corev1.ProtocolTCP, unix.IPPROTO_UDP: corev1.ProtocolUDP,
		unix.IPPROTO_SCTP: corev1.ProtocolSCTP}
)

// ErrLost means that IPVS existed and does not exist any more: another program has removed all virtual servers, which
// hold the module, and then unloaded it. A module that is loaded again has another number in netlink, which this
// process does not know.
var ErrLost = errors.New("the kernel has lost its IPVS, the module ip_vs was unloaded, and Services do not answer on this node: " +
	"restart coracle here; with --proxy-mode=auto it goes on with nftables where the module cannot be loaded again")

func (k *kernel) Servers() (map[Key]Server, error) {
	all, err := k.h.GetServices()
	if errors.Is(err, unix.ENOENT) {
		return nil, ErrLost
	}
	if err != nil {
		return nil, fmt.Errorf("listing virtual servers: %w", err)
	}
	out := map[Key]Server{}
	for _, s := range all {
		a, ok := netip.AddrFromSlice(s.Address)
		if s.Flags&nft.IPVSFlag == 0 || s.AddressFamily != k.family || !ok {
			continue
		}
		server := Server{Scheduler: s.SchedName}
		if s.Flags&flagPersistent != 0 {
			server.Affinity = s.Timeout
		}
		out[Key{protocolNames[s.Protocol], a.Unmap(), s.Port}] = server
	}
	return out, nil
}

func (k *kernel) service(key Key, s Server) *moby.Service {
	out := &moby.Service{
		Address: key.Addr.AsSlice(), Protocol: protocols[key.Protocol], Port: key.Port, AddressFamily: k.family, SchedName: s.Scheduler,
		Flags: nft.IPVSFlag | flagsOf(s.Scheduler), Netmask: 0xffffffff,
	}
	if k.family == unix.AF_INET6 {
		out.Netmask = 128
	}
	if s.Affinity > 0 {
		out.Flags |= flagPersistent
		out.Timeout = s.Affinity
	}
	return out
}

func (k *kernel) destination(a netip.AddrPort, weight int) *moby.Destination {
	return &moby.Destination{
		Address: net.IP(a.Addr().AsSlice()), Port: a.Port(), Weight: weight, AddressFamily: k.family,
		ConnectionFlags: moby.ConnectionFlagMasq,
	}
}

// AddServer takes over a virtual server that another program, or an earlier kube-proxy, left at the address.
func (k *kernel) AddServer(key Key, s Server) error {
	err := k.h.NewService(k.service(key, s))
	if errors.Is(err, unix.EEXIST) {
		return k.UpdateServer(key, s)
	}
	return wrap(schedulerError(err, s), "adding the virtual server %s", key)
}

func (k *kernel) UpdateServer(key Key, s Server) error {
	return wrap(schedulerError(k.h.UpdateService(k.service(key, s)), s), "changing the virtual server %s", key)
}

func (k *kernel) DeleteServer(key Key) error {
	err := k.h.DelService(k.service(key, Server{}))
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return wrap(err, "deleting the virtual server %s", key)
}

func (k *kernel) Reals(key Key) ([]Real, error) {
	all, err := k.h.GetDestinations(k.service(key, Server{}))
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the real servers of %s: %w", key, err)
	}
	var out []Real
	for _, d := range all {
		if a, ok := netip.AddrFromSlice(d.Address); ok {
			out = append(out, Real{netip.AddrPortFrom(a.Unmap(), d.Port), d.Weight, d.ActiveConnections + d.InactiveConnections})
		}
	}
	return out, nil
}

func (k *kernel) AddReal(key Key, a netip.AddrPort) error {
	err := k.h.NewDestination(k.service(key, Server{}), k.destination(a, 1))
	if errors.Is(err, unix.EEXIST) {
		return k.SetWeight(key, a, 1)
	}
	return wrap(err, "adding %s to the virtual server %s", a, key)
}

func (k *kernel) SetWeight(key Key, a netip.AddrPort, weight int) error {
	return wrap(k.h.UpdateDestination(k.service(key, Server{}), k.destination(a, weight)), "giving %s of the virtual server %s weight %d", a, key,
		weight)
}

func (k *kernel) DeleteReal(key Key, a netip.AddrPort) error {
	err := k.h.DelDestination(k.service(key, Server{}), k.destination(a, 0))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return wrap(err, "taking %s from the virtual server %s", a, key)
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
