// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/preflight"
)

// portOwners are the ports of Ingresses and Gateways at this node's addresses: whether the node has them, or another
// program of the machine. The first one keeps a port: a program as long as it listens, the ingress as long as it is
// served.
type portOwners struct {
	ours map[int]bool
	// programs are those that listen at some of the ports, by name, which is empty where it cannot be found.
	programs map[int]string
}

// busyEntry is what the Node's annotation says of a port that another program keeps.
func busyEntry(port int) string { return table.BusyEntry + "=" + strconv.Itoa(port) }

// update finds out who has the ports. said is what the Node's annotation said when this run began: what it served
// then is its own still.
func (c *portOwners) update(ports []int, programs map[int]string, said string) {
	before := strings.Split(said, ",")
	served := slices.ContainsFunc(before, func(entry string) bool { return strings.HasPrefix(entry, table.HTTP+"=") })
	ours := map[int]bool{}
	for _, port := range ports {
		_, listens := programs[port]
		has, known := c.ours[port]
		if !known && c.ours == nil {
			has = served && !slices.Contains(before, busyEntry(port))
		}
		ours[port] = has || !listens
	}
	c.ours, c.programs = ours, programs
}

// among are the programs at ports that the node has, or at those that it has not.
func (c *portOwners) among(ours bool) map[int]string {
	out := map[int]string{}
	for port, name := range c.programs {
		if c.ours[port] == ours {
			out[port] = name
		}
	}
	return out
}

// annotation is what the Node says of them, behind the ports at which it serves.
func (c *portOwners) annotation() string {
	out := ""
	for _, port := range slices.Sorted(maps.Keys(c.ours)) {
		if !c.ours[port] {
			out += "," + busyEntry(port)
		}
	}
	return out
}

// problem says what is wrong, for people; empty when nothing is.
func (c *portOwners) problem() string {
	if them := c.among(false); len(them) > 0 {
		return "this node is no address of Ingresses and Gateways, since another program listens at " + preflight.Programs(them) +
			" and keeps it: stop it, or have it listen elsewhere"
	}
	if them := c.among(true); len(them) > 0 {
		return "another program listens at " + preflight.Programs(them) +
			", which the ingress had first: what comes from other machines does not reach it"
	}
	return ""
}

// servicePorts are the TCP ports of the Services of Ingresses and Gateways at nodes' addresses. At addresses that are
// no node's, as those of a pool, other programs are no conflict.
func (n *Node) servicePorts() []int {
	var all []*corev1.Service
	if svc, err := n.o.Services.Lister().Services(metav1.NamespaceSystem).Get(table.Service); err == nil {
		all = append(all, svc)
	}
	found, _ := n.o.Services.Informer().GetIndexer().ByIndex(byGateway, byGateway) // the index exists
	for _, o := range found {
		if svc, ok := o.(*corev1.Service); ok {
			all = append(all, svc)
		}
	}
	nodes := n.nodeAddresses()
	var out []int
	for _, svc := range all {
		if slices.ContainsFunc(svc.Status.LoadBalancer.Ingress, func(at corev1.LoadBalancerIngress) bool {
			ip, err := netip.ParseAddr(at.IP)
			return err != nil || !slices.Contains(nodes, ip.Unmap())
		}) {
			continue
		}
		for _, p := range svc.Spec.Ports {
			if p.Protocol == "" || p.Protocol == corev1.ProtocolTCP {
				out = append(out, int(p.Port))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
