// SPDX-License-Identifier: Apache-2.0

package cni_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUnreachablePeersAreReported: Nodes say which peers host-gw would cut off. No peer is reported of which they say
// too little.
func TestUnreachablePeersAreReported(t *testing.T) {
	node := func(name, pods, addresses, networks string, more ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}}, Spec: corev1.NodeSpec{PodCIDRs: strings.Fields(pods)}}
		for _, a := range strings.Fields(addresses) {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		if networks != "" {
			n.Annotations[loadbalancer.NetworksAnnotation] = networks
		}
		if len(more) > 0 {
			n.Annotations[clusterconfig.UnderlayAnnotation] = more[0]
		}
		if len(more) > 1 {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: more[1]})
		}
		return n
	}
	a := node("a", "10.42.0.0/24", "192.0.2.1", "192.0.2.0/24")
	for name, c := range map[string]struct {
		nodes []*corev1.Node
		want  string
	}{
		"none":               {nil, ""},
		"alone":              {[]*corev1.Node{node("a", "10.42.0.0/24 fd42::/64", "192.0.2.1", "192.0.2.0/24")}, ""},
		"one network":        {[]*corev1.Node{a, node("b", "10.42.1.0/24", "192.0.2.2", "192.0.2.0/24")}, ""},
		"a router":           {[]*corev1.Node{a, node("b", "10.42.1.0/24", "198.51.100.2", "198.51.100.0/24")}, "nodes a (192.0.2.1) and b (198.51.100.2) are not in one network"},
		"one says nothing":   {[]*corev1.Node{node("a", "10.42.0.0/24", "192.0.2.1", ""), node("b", "10.42.1.0/24", "198.51.100.2", "198.51.100.0/24")}, "nodes b (198.51.100.2) and a (192.0.2.1) are not in one network"},
		"both say nothing":   {[]*corev1.Node{node("a", "10.42.0.0/24", "192.0.2.1", ""), node("b", "10.42.1.0/24", "198.51.100.2", "")}, ""},
		"about others":       {[]*corev1.Node{node("a", "10.42.0.0/24", "192.0.2.1", "10.0.0.0/24"), node("b", "10.42.1.0/24", "198.51.100.2", "10.0.0.0/24,x")}, ""},
		"of different width": {[]*corev1.Node{node("a", "10.42.0.0/24", "192.0.2.1", "192.0.0.0/16"), node("b", "10.42.1.0/24", "192.0.3.1", "192.0.3.0/24")}, "nodes b (192.0.3.1) and a (192.0.2.1) are not in one network"},
		"not a node yet":     {[]*corev1.Node{a, node("b", "", "198.51.100.2", "198.51.100.0/24")}, ""},
		"other interfaces":   {[]*corev1.Node{node("a", "10.42.0.0/24", "192.0.2.1", "192.0.2.0/24,10.0.0.0/24", "10.0.0.1"), node("b", "10.42.1.0/24", "198.51.100.2", "198.51.100.0/24,10.0.0.0/24", "10.0.0.2")}, ""},
		"translated":         {[]*corev1.Node{node("a", "10.42.0.0/24", "192.0.2.1", "192.0.2.0/24", "203.0.113.1", "203.0.113.1"), node("b", "10.42.1.0/24", "192.0.2.2", "192.0.2.0/24", "203.0.113.2", "203.0.113.2")}, "nodes a (203.0.113.1) and b (203.0.113.2) are not in one network"},
		"one translated":     {[]*corev1.Node{a, node("b", "10.42.1.0/24", "192.0.2.2", "192.0.2.0/24", "203.0.113.2", "203.0.113.2")}, "nodes a (192.0.2.1) and b (203.0.113.2) are not in one network"},
		"external, its own":  {[]*corev1.Node{node("a", "10.42.0.0/24", "192.0.2.1", "192.0.2.0/24,203.0.113.0/24", "203.0.113.1", "203.0.113.1"), node("b", "10.42.1.0/24", "192.0.2.2", "192.0.2.0/24,203.0.113.0/24", "203.0.113.2", "203.0.113.2")}, ""},
		"external, unused":   {[]*corev1.Node{node("a", "10.42.0.0/24", "192.0.2.1", "192.0.2.0/24", "", "203.0.113.1"), node("b", "10.42.1.0/24", "192.0.2.2", "192.0.2.0/24", "", "203.0.113.2")}, ""},
		"both families":      {[]*corev1.Node{node("a", "10.42.0.0/24 fd42::/64", "192.0.2.1 fd00::1", "192.0.2.0/24,fd00::/64"), node("b", "10.42.1.0/24 fd42:0:0:1::/64", "192.0.2.2 fd00::2", "192.0.2.0/24,fd00::/64")}, ""},
		"of one family":      {[]*corev1.Node{node("a", "10.42.0.0/24 fd42::/64", "192.0.2.1 fd00::1", "192.0.2.0/24,fd00::/64"), node("b", "10.42.1.0/24 fd42:0:0:1::/64", "192.0.2.2", "192.0.2.0/24")}, "node b has no address of the family of its pods' network fd42:0:0:1::/64"},
		"apart in one":       {[]*corev1.Node{node("a", "10.42.0.0/24 fd42::/64", "192.0.2.1 fd00::1", "192.0.2.0/24,fd00::/64"), node("b", "10.42.1.0/24 fd42:0:0:1::/64", "192.0.2.2 fd01::2", "192.0.2.0/24,fd01::/64")}, "nodes a (fd00::1) and b (fd01::2) are not in one network"},
	} {
		t.Run(name, func(t *testing.T) {
			testenv.Equal(t, strings.Join(cni.UnreachablePairs(c.nodes), "; "), c.want, "got")
		})
	}
}
