// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/lbports"
)

const (
	// NodePortCondition is in the status of a Service while a node port of it is not opened on any node, since another Service has the port at nodes' addresses.
	NodePortCondition = "coracle.dev/NodePort"
	// ReasonNodePortInUse is its reason.
	ReasonNodePortInUse = "NodePortInUse"
)

// refusal is a node port that is not opened, and who has it.
type refusal struct {
	port Port
	has  types.NamespacedName
}

// refused are the node ports that came after a load balancer's Service had the port at some node's address. The proxies read the same from the Services'
// status (lbports.Held).
func (s *State) refused(c claims) map[types.NamespacedName][]refusal {
	out, holders := map[types.NamespacedName][]refusal{}, c.ofPorts()
	for _, svc := range s.Services {
		for _, p := range svc.Spec.Ports {
			port := lbports.Of(p.Protocol, p.NodePort)
			for _, has := range holders[port] {
				if p.NodePort != 0 && has != key(svc) {
					out[key(svc)] = append(out[key(svc)], refusal{port, has})
					break
				}
			}
		}
	}
	return out
}

func refusals(all []refusal) string {
	var words []string
	for _, r := range all {
		words = append(words, fmt.Sprintf("the node port %s is not opened: the Service %s has it at nodes' addresses", r.port, r.has))
	}
	slices.Sort(words)
	return strings.Join(words, "; ") + ". Give this Service another node port"
}
