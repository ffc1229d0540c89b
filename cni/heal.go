// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/internal/hostfirewall"
	"github.com/coracle-k8s/coracle/internal/nft"
)

// guardPeriod is the interval of the checks for missing objects. The events of the kernel cause further checks.
const guardPeriod = 30 * time.Second

// heal repairs what another program removed: the nftables table, which a restart of a host firewall removes, or
// anything of the host's side. With whole it also checks whether the table's content is complete, and sets the MTU of
// the pods for which that failed before.
func (pn *podNetwork) heal(ctx context.Context, whole bool) {
	if pn.network.Load() == nil {
		return
	}
	nw, before := pn.triedNetwork, pn.reporter.tunnelErrors
	// The table comes first: without it pods may send from any address. An error here does not mean that it is missing.
	if ok, err := nft.Exists(ownTable()); err == nil && !ok || whole && !pn.rules.intact() {
		pn.log.Info("The nftables table of the pod network was removed or changed by another program; writing it again")
		if err := pn.applyRules(ctx); err != nil {
			pn.log.Error(err, "Host ports and traffic from pods to the outside do not work; trying again", "after", pn.guardPeriod)
		}
	}
	if pn.serviceAddressesChanged() {
		if err := pn.applyRules(ctx); err != nil {
			pn.log.Error(err, "Host ports may answer at addresses of new Services; trying again", "after", pn.guardPeriod)
		}
	}
	changes, err := pn.applyHost(nw)
	if len(changes) > 0 && before == "" { // otherwise the changes are what could not be made earlier
		pn.log.Info("The host's side of the pod network was changed by another program; it is as it should be again", "changes",
			strings.Join(changes, ", "))
	}
	if err != nil {
		pn.log.Error(err, "The node may not reach its pods; trying again", "after", pn.guardPeriod)
	}
	if whole && len(pn.resizeErrors) > 0 {
		pn.resizePods(pn.network.Load())
	}
}

func ownTable() nft.Table { return nft.Table{Family: nft.INet, Name: tableName} }

// applyHost makes the host's side of the pod network match the attachments of living pods, and returns its changes. It
// returns errors of the node. Errors of single pods are logged, once for each new set. Errors of the tunnels to single
// peers are reported: peers publish their addresses themselves, and must not keep this node from serving its pods.
func (pn *podNetwork) applyHost(nw *network) (changes []string, err error) {
	pn.attaching.Lock() // while it is held, a pod's device exists exactly if its attachment is listed
	defer pn.attaching.Unlock()
	in := hostInput{bridge: Bridge, mtu: nw.mtu, podCIDRs: nw.podCIDRs, serviceCIDRs: pn.o.ServiceCIDRs}
	in.paths, _ = nw.backend.desired(nw.paths)
	for _, r := range pn.attachments.list() {
		if r.isAlive() { // objects of other pods vanish with their namespaces, and their DEL will follow
			in.pods = append(in.pods, r)
		}
	}
	if _, ok := sameFamily(nw.podCIDRs, netip.IPv6Unspecified()); ok {
		in.advertised = routerAdvertised(Bridge)
	}
	want := desiredHost(in)
	var sysctls []sysctl
	for _, w := range want {
		if o, ok := w.object.(sysctl); ok {
			sysctls = append(sysctls, o)
		}
	}
	k := newKernel()
	k.wg = pn.wg
	have, err := k.observe(Bridge, sysctls)
	if err != nil {
		return nil, fmt.Errorf("looking at the host's network: %w", err)
	}
	ensure, remove := difference(want, have)
	var errs []error
	podErrors := map[*attachment]error{} // a pod's first error: the others follow from it
	tunnelErrors := map[string]error{}   // likewise
	for _, w := range ensure {
		if w.pod != nil && podErrors[w.pod] != nil || w.peer != "" && tunnelErrors[w.peer] != nil {
			continue
		}
		switch err := k.ensure(w.object); {
		case err == nil:
			changes = append(changes, "+ "+w.String())
		case w.pod != nil:
			podErrors[w.pod] = err
		case w.peer != "":
			tunnelErrors[w.peer] = err
		default:
			errs = append(errs, err)
		}
	}
	for _, o := range remove {
		if err := k.remove(o); err != nil {
			errs = append(errs, err)
			continue
		}
		changes = append(changes, "- "+o.String())
	}
	pn.reportPods(podErrors)
	if len(errs) == 0 { // otherwise they follow from errs
		pn.reportTunnelErrors(tunnelErrors)
	}
	return changes, errors.Join(errs...)
}

// reportPods logs which pods have errors, when they did not have any before.
func (pn *podNetwork) reportPods(errs map[*attachment]error) {
	now := map[key]bool{}
	for r, err := range errs {
		now[r.key()] = true
		if !pn.podErrors[r.key()] {
			pn.log.Error(err, "A running pod may be unreachable", "pod", r.Pod, "container", r.ContainerID)
		}
	}
	pn.podErrors = now
}

// reservesPort reports whether a host port is the one at which the back end receives packets from other nodes. No new
// pod gets that port. A running pod may have it if the cluster changed to this back end meanwhile.
func (nw *network) reservesPort(p hostPort) bool {
	return p.Protocol == "udp" && int(p.Port) == nw.backend.port()
}

// warnOfHostPorts logs for which pods the back end uses a host port.
func (pn *podNetwork) warnOfHostPorts(nw *network) {
	for _, r := range pn.attachments.list() {
		if r.isAlive() && slices.ContainsFunc(r.hostPorts(), nw.reservesPort) {
			pn.log.Info("A running pod's host port is where packets from other nodes come in now: it does not lead to the pod any more",
				"pod", r.Pod, "port", nw.backend.port(), "backend", nw.name)
		}
	}
}

// warnOfFirewalls logs, once per change, other programs' firewalls that may block the cluster, and the commands that
// open them: an accept in our own table cannot overrule them, and their tables are not ours to change.
func (pn *podNetwork) warnOfFirewalls() {
	found, err := hostfirewall.Find()
	if err != nil {
		return // it is advice only
	}
	needs := hostfirewall.Needs{Port: pn.o.Port, Pods: pn.o.ClusterCIDRs}
	if nw := pn.network.Load(); nw != nil {
		needs.Tunnel = nw.backend.port()
	}
	found = needs.Concern(found)
	now := hostfirewall.Describe(found)
	if now == pn.reportedFirewalls {
		return
	}
	pn.reportedFirewalls = now
	if pn.o.Firewalls != nil {
		pn.o.Firewalls(now)
	}
	if now == "" {
		pn.log.Info("No other program's firewall drops what comes to this machine or to its pods any more")
		return
	}
	pn.log.Info("Another program's firewall decides what comes to this machine and to its pods: names, Services and pods of other nodes "+
		"are reached only where it "+
		"lets the cluster through", "firewall", now, "type", hostfirewall.Advice(found, needs))
}
