// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/internal/netlinkutil"
)

var errNotReady = wire.Errorf(wire.CodeTryAgainLater,
	"network not ready yet: the node waits for its pod CIDR; running pods are not affected, try again later")

// add serves ADD: a pod gets its device, addresses, routes and host ports. After a failure all of them are removed.
func (s *Server) add(ctx context.Context, req wire.Request, conf pluginConf) (_ any, err error) {
	nw := s.network.Load()
	if nw == nil {
		return nil, errNotReady
	}
	ports, err := conf.ports()
	if err != nil {
		return nil, err
	}
	if err := s.refuseReserved(ports, nw); err != nil {
		return nil, err
	}
	limits, err := conf.bandwidth()
	if err != nil {
		return nil, err
	}
	if err := checkNames(req); err != nil {
		return nil, err
	}
	k := key{req.ContainerID, req.IfName}
	defer s.keys.lock(k)()
	if s.attachments.get(k) != nil {
		return nil, wire.Errorf(wire.CodeMismatch, "%s of container %s is attached already: DEL it first", k.IfName, k.ContainerID)
	}
	ips, err := s.allocate(k, nw.podCIDRs)
	if err != nil {
		return nil, err
	}
	args := parseArgs(req.Args)
	r := &attachment{
		ContainerID: k.ContainerID, IfName: k.IfName, Netns: req.Netns, HostDevice: deviceName(k),
		MAC: podMAC(ips[0]).String(), IPs: ips, Ports: ports, Bandwidth: limits,
		Pod: args["K8S_POD_NAMESPACE"] + "/" + args["K8S_POD_NAME"], UID: args["K8S_POD_UID"],
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.detach(context.WithoutCancel(ctx), r))
		}
	}()
	if err := s.admit(ctx, r); err != nil {
		return nil, err
	}
	if nw, err = s.attach(r, nw); err != nil {
		return nil, err
	}
	if len(r.Ports) > 0 {
		if err := s.applyRules(ctx); err != nil {
			return nil, err
		}
		s.dropStaleFlows(r, false)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("the runtime gave the call up: %w", err)
	}
	return result(r, nw, conf.CNIVersion)
}

// admit waits for the rules of the pod's NetworkPolicies, before there is a device for packets.
func (s *Server) admit(ctx context.Context, r *attachment) error {
	b, ok := r.sandbox()
	if s.o.Policies == nil || !ok {
		return nil
	}
	if err := s.o.Policies.Admit(ctx, b); err != nil {
		return wire.Errorf(wire.CodeTryAgainLater, "%v", err)
	}
	return nil
}

// release reports to Policies that an attachment has no network any more.
func (s *Server) release(k key) {
	if s.o.Policies != nil {
		s.o.Policies.Release(k.String())
	}
}

// attach makes r's device and writes its file. It returns the network for which the pod was made, which may have
// another back end than when the call arrived. From then on configure knows the attachment when it changes the sizes of
// running pods, which it did not before.
func (s *Server) attach(r *attachment, nw *network) (*network, error) {
	s.attaching.RLock()
	defer s.attaching.RUnlock()
	if now := s.network.Load(); slices.Equal(now.podCIDRs, nw.podCIDRs) { // to which r's addresses belong
		nw = now
	}
	if err := s.refuseReserved(r.Ports, nw); err != nil {
		return nil, err
	}
	if err := attach(r, nw); err != nil {
		return nil, err
	}
	return nw, s.attachments.store(r)
}

// refuseReserved rejects host ports that the cluster itself needs.
func (s *Server) refuseReserved(ports []PortMapping, nw *network) error {
	for _, m := range ports {
		if slices.Contains(s.o.ReservedPorts, m.HostPort) || m.Protocol == "udp" && int(m.HostPort) == nw.backend.port() {
			return wire.Errorf(wire.CodeInvalidConfig, "the host port %d is the cluster's own: choose another one", m.HostPort)
		}
	}
	return nil
}

// allocate allocates addresses. When none is free, it first releases the addresses of dead sandboxes.
func (s *Server) allocate(k key, cidrs []netip.Prefix) ([]netip.Addr, error) {
	ips, err := s.ipam.allocate(k, cidrs)
	if errors.Is(err, errExhausted) {
		if err := s.collect(nil); err != nil {
			return nil, err
		}
		ips, err = s.ipam.allocate(k, cidrs)
	}
	if errors.Is(err, errExhausted) {
		return nil, wire.Errorf(wire.CodeExhausted,
			"%v: every address belongs to a running pod; delete pods on this node, or give nodes a larger pod CIDR", err)
	}
	return ips, err
}

// del serves DEL. It is no error if the attachment does not exist any more (CNI specification, section 2).
func (s *Server) del(ctx context.Context, req wire.Request) error {
	if err := checkNames(req); err != nil {
		return err
	}
	k := key{req.ContainerID, req.IfName}
	defer s.keys.lock(k)()
	r := s.attachments.get(k)
	if r == nil {
		r = &attachment{ContainerID: k.ContainerID, IfName: k.IfName, HostDevice: deviceName(k)}
	}
	return s.detach(ctx, r)
}

// detach undoes a complete or incomplete attachment. The caller holds its lock. Host ports are removed first and the
// address is released last, so that nothing of the old pod refers to the address' next owner.
func (s *Server) detach(ctx context.Context, r *attachment) error {
	s.attaching.RLock()
	defer s.attaching.RUnlock()
	if err := s.attachments.remove(r.key()); err != nil {
		return err
	}
	if len(r.Ports) > 0 {
		if nw := s.network.Load(); nw != nil {
			if err := s.applyRules(ctx); err != nil {
				// The attachment is kept, so that the runtime's next DEL tries again.
				return errors.Join(err, s.attachments.store(r))
			}
		}
		s.dropStaleFlows(r, true)
	}
	if err := removePodDevices(r.key()); err != nil { // this also removes every route and neighbour entry of the device
		return errors.Join(err, s.attachments.store(r))
	}
	s.release(r.key())
	return s.ipam.release(r.key())
}

// dropStaleFlows logs a failure, which must not make a pod's start or end fail.
func (s *Server) dropStaleFlows(r *attachment, removed bool) {
	if err := dropStaleFlows(r, removed); err != nil {
		s.log.Error(err, "UDP senders from before may not reach the host port until they pause", "pod", r.Pod)
	}
}

// check serves CHECK: whether the attachment is as ADD made it.
func (s *Server) check(req wire.Request) error {
	k := key{req.ContainerID, req.IfName}
	defer s.keys.lock(k)()
	r := s.attachments.get(k)
	if r == nil {
		return wire.Errorf(wire.CodeUnknownContainer, "%s of container %s is not attached", k.IfName, k.ContainerID)
	}
	if _, err := netlink.LinkByName(r.HostDevice); err != nil {
		return wire.Errorf(wire.CodeMismatch, "the pod's device %s on the host: %v", r.HostDevice, err)
	}
	ns, err := netns.GetFromPath(req.Netns)
	if err != nil {
		return wire.Errorf(wire.CodeUnknownContainer, "opening the network namespace %s: %v", req.Netns, err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("entering the pod's network namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(r.IfName)
	if err != nil {
		return wire.Errorf(wire.CodeMismatch, "%s in the pod: %v", r.IfName, err)
	}
	addrs, err := netlinkutil.ConsistentList(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the pod's addresses: %w", err)
	}
	have := map[netip.Addr]bool{}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			have[ip.Unmap()] = true
		}
	}
	for _, ip := range r.IPs {
		if !have[ip] {
			return wire.Errorf(wire.CodeMismatch, "%s in the pod lacks the address %s", r.IfName, ip)
		}
	}
	return nil
}

// status serves STATUS: whether an ADD could be served.
func (s *Server) status() error {
	if !s.Ready() {
		return wire.Errorf(wire.CodeUnavailable, "%s", errNotReady.Msg)
	}
	return nil
}

// gc serves GC: it removes attachments that the runtime does not list.
func (s *Server) gc(ctx context.Context, conf pluginConf) error {
	valid := map[key]bool{}
	for _, a := range conf.ValidAttachments {
		valid[key{a.ContainerID, a.IfName}] = true
	}
	var errs []error
	for _, r := range s.attachments.list() {
		if !valid[r.key()] {
			errs = append(errs, s.detachKey(ctx, r.key()))
		}
	}
	errs = append(errs, s.collect(func(k key) bool { return valid[k] }))
	return errors.Join(errs...)
}

func (s *Server) detachKey(ctx context.Context, k key) error {
	defer s.keys.lock(k)()
	r := s.attachments.get(k)
	if r == nil {
		return nil
	}
	return s.detach(ctx, r)
}

// collect removes what no living sandbox needs: attachments without a namespace, and addresses without an attachment.
// skip names attachments to leave alone. Those with a call in flight are left alone, too. A stale host port rule
// remains until the next apply, which follows in every caller except an ADD without free addresses.
func (s *Server) collect(skip func(key) bool) error {
	for _, r := range s.attachments.list() {
		if skip != nil && skip(r.key()) || r.isAlive() {
			continue
		}
		if err := s.collectOne(r.key()); err != nil {
			return err
		}
	}
	owners, err := s.ipam.owners()
	if err != nil {
		return err
	}
	for k := range owners {
		if skip != nil && skip(k) {
			continue
		}
		if err := s.collectOne(k); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) collectOne(k key) error {
	// Waiting for a call in flight would deadlock two ADDs that collect for one another.
	unlock, ok := s.keys.tryLock(k)
	if !ok {
		return nil
	}
	defer unlock()
	if r := s.attachments.get(k); r != nil && r.isAlive() {
		return nil
	}
	s.attaching.RLock()
	defer s.attaching.RUnlock()
	s.log.Info("Releasing what a sandbox that is gone left behind", "container", k.ContainerID, "interface", k.IfName)
	err := errors.Join(s.attachments.remove(k), removePodDevices(k))
	if err == nil {
		s.release(k)
	}
	return errors.Join(err, s.ipam.release(k))
}

// checkNames rejects names that are no file names, since attachments are files.
func checkNames(req wire.Request) error {
	for _, n := range []string{req.ContainerID, req.IfName} {
		if n == "" || n[0] == '.' || len(n) > 200 {
			return wire.Errorf(wire.CodeInvalidEnvironment, "%s is no container ID or interface name", strconv.Quote(n))
		}
		for _, c := range n {
			if c == '/' || c == 0 || c <= ' ' {
				return wire.Errorf(wire.CodeInvalidEnvironment, "%s is no container ID or interface name", strconv.Quote(n))
			}
		}
	}
	return nil
}

// result returns the output of ADD, in the CNI version that the caller's configuration has.
func result(r *attachment, nw *network, version string) (any, error) {
	out := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: r.HostDevice, Mac: hostMAC.String(), Mtu: nw.mtu},
			{Name: r.IfName, Mac: r.MAC, Mtu: nw.mtu, Sandbox: r.Netns},
		},
	}
	for i, ip := range r.IPs {
		out.IPs = append(out.IPs, &types100.IPConfig{
			Interface: types100.Int(1), Address: *hostNet(ip), Gateway: gateway(nw.podCIDRs[i]).AsSlice(),
		})
	}
	res, err := out.GetAsVersion(version)
	if err != nil {
		return nil, fmt.Errorf("writing the result as CNI %s: %w", version, err)
	}
	return res, nil
}
