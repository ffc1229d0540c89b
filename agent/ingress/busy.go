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

// portOwners records for each port of Ingresses and Gateways whether this node or another program of the machine uses
// it. The first one keeps a port: a program as long as it listens, the ingress as long as it serves
// the port.
type portOwners struct {
	ownProcesses map[int]bool
	// programs has the names of the programs that listen at some of the ports. A name is empty where it cannot be found
	// out.
	programs map[int]string
}

// busyEntry returns the entry of the Node's annotation for a port that another program keeps.
func busyEntry(port int) string { return table.BusyEntry + "=" + strconv.Itoa(port) }

// update finds out who uses the ports. said is the value of the Node's annotation when this run began: the node keeps
// the ports that it served then.
func (c *portOwners) update(ports []int, programs map[int]string, said string) {
	before := strings.Split(said, ",")
	served := slices.ContainsFunc(before, func(entry string) bool { return strings.HasPrefix(entry, table.HTTP+"=") })
	ours := map[int]bool{}
	for _, port := range ports {
		_, listens := programs[port]
		has, known := c.ownProcesses[port]
		if !known && c.ownProcesses == nil {
			has = served && !slices.Contains(before, busyEntry(port))
		}
		ours[port] = has || !listens
	}
	c.ownProcesses, c.programs = ours, programs
}

// programsAtPorts returns the programs at ports that the node uses, or at those that it does not.
func (c *portOwners) programsAtPorts(ours bool) map[int]string {
	out := map[int]string{}
	for port, name := range c.programs {
		if c.ownProcesses[port] == ours {
			out[port] = name
		}
	}
	return out
}

// annotation returns the entries of busy ports for the Node's annotation, which follow the ports that it serves.
func (c *portOwners) annotation() string {
	out := ""
	for _, port := range slices.Sorted(maps.Keys(c.ownProcesses)) {
		if !c.ownProcesses[port] {
			out += "," + busyEntry(port)
		}
	}
	return out
}

// problem describes a conflict for users. It is empty when there is none.
func (c *portOwners) problem() string {
	if them := c.programsAtPorts(false); len(them) > 0 {
		return "this node is no address of Ingresses and Gateways, since another program listens at " + preflight.Programs(them) +
			" and holds that port: stop that program, or make it listen on another port"
	}
	if them := c.programsAtPorts(true); len(them) > 0 {
		return "another program listens at " + preflight.Programs(them) +
			", which the ingress opened first: connections from other machines do not reach that program"
	}
	return ""
}

// servicePorts returns the TCP ports of the Services of Ingresses and Gateways at nodes' addresses. At addresses of no
// node, such as a pool's, other programs are no conflict.
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
