// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

const (
	// NodePortCondition is in the status of a Service while no node opens one of its node ports, because another
	// Service has the port at nodes' addresses.
	NodePortCondition = "coracle.dev/NodePort"
	// ReasonNodePortInUse is the reason of NodePortCondition.
	ReasonNodePortInUse = "NodePortInUse"
)

// refusal is a node port that is not opened, with the Service that has it.
type refusal struct {
	port  Port
	owner types.NamespacedName
}

// refused returns the node ports that no node opens, by Service: a load balancer's Service had the same port at some
// node's address before. The proxies derive the same from the Services' status (loadbalancer.Held).
func (s *State) refused(c priorOwners) map[types.NamespacedName][]refusal {
	out, holders := map[types.NamespacedName][]refusal{}, c.ofPorts()
	for _, svc := range s.Services {
		for _, p := range svc.Spec.Ports {
			port := loadbalancer.PortOf(p.Protocol, p.NodePort)
			for _, has := range holders[port] {
				if p.NodePort != 0 && has != serviceKey(svc) {
					out[serviceKey(svc)] = append(out[serviceKey(svc)], refusal{port, has})
					break
				}
			}
		}
	}
	return out
}

// ofNodePorts reports whether a port is in the range of node ports, and is not this Service's own node port. No Service
// gets such a port at nodes' addresses. It would close a node port that the API server may have allocated, and one
// Service could close all of them. Its own node ports are counted by the API server and by quotas.
func (s *State) ofNodePorts(svc *corev1.Service, port Port) bool {
	return s.NodePorts.Contains(int(port.Number)) &&
		!slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return loadbalancer.PortOf(p.Protocol, p.NodePort) == port })
}

// inNodePorts returns a message about the ports of a Service that it cannot get at nodes' addresses (ofNodePorts), and
// what to do about them; "" if there are none.
func (s *State) inNodePorts(svc *corev1.Service) string {
	ports := slices.DeleteFunc(portsOf(svc), func(p Port) bool { return !s.ofNodePorts(svc, p) })
	if len(ports) == 0 {
		return ""
	}
	text := fmt.Sprintf("port %s is of the range from which node ports are given out (%s), and belongs at nodes' addresses to the "+
		"Service that has it as node port: "+
		"write nodePort: %d beside port: %d, or take a port outside of the range", ports[0], s.NodePorts.String(), ports[0].Number,
		ports[0].Number)
	if more := len(ports) - 1; more > 0 {
		text += fmt.Sprintf("; and so with %d more ports", more)
	}
	return text
}

func refusalText(all []refusal) string {
	var words []string
	for _, r := range all {
		words = append(words, fmt.Sprintf("the node port %s is not opened: the Service %s has it at nodes' addresses", r.port, r.owner))
	}
	slices.Sort(words)
	return strings.Join(words, "; ") + ". Give this Service another node port"
}
