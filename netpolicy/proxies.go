// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"

	clusterconfig "github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// controller is an ingress controller as policies select it: by the labels of its pods and of their namespace.
type controller struct {
	namespace string
	// labels are those of the namespace if the cluster has no namespace with that name.
	labels labels.Set
	pods   []labels.Set // of several versions
}

// controllers are ingress controllers for whose pods policies are written. Our ingress proxies are no pods: a rule that
// would admit a pod of one of these controllers admits the proxies of all nodes.
var controllers = []controller{
	{"ingress-nginx", labels.Set{
		corev1.LabelMetadataName: "ingress-nginx", "name": "ingress-nginx",
		"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/instance": "ingress-nginx",
	}, []labels.Set{
		{
			"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/instance": "ingress-nginx",
			"app.kubernetes.io/component": "controller",
			"app.kubernetes.io/part-of":   "ingress-nginx",
		},
		{"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/part-of": "ingress-nginx"},
		{"app": "ingress-nginx"},
	}},
	{"kube-system", nil, []labels.Set{
		{"app.kubernetes.io/name": "traefik", "app.kubernetes.io/instance": "traefik-kube-system"},
		{"app.kubernetes.io/name": "coracle-ingress"},
	}},
	{"traefik", labels.Set{corev1.LabelMetadataName: "traefik", "name": "traefik"}, []labels.Set{
		{"app.kubernetes.io/name": "traefik", "app.kubernetes.io/instance": "traefik-traefik"},
	}},
}

// setProxies begins the names of the two sets (4 or 6 follows) of the addresses from which ingress proxies connect to
// pods.
const setProxies = "proxies"

// proxies returns the addresses from which ingress proxies connect to pods, by family. On another node this is an
// address that only the proxy uses. On this node it is the address of all the node's programs, and only the proxy's
// connections are filtered (frame).
func proxies(s State) map[int]map[string]bool {
	out := map[int]map[string]bool{4: {}, 6: {}}
	for node, networks := range podCIDRs(s.Node, s.Nodes) {
		for _, f := range []int{4, 6} {
			for _, c := range networks {
				if familyOf(c.Addr()) != f {
					continue
				}
				source := clusterconfig.IngressSource(c)
				if node == s.Node {
					source = clusterconfig.NodeSource(c)
				}
				out[f][source.String()] = true
				break // only the first of a family counts
			}
		}
	}
	return out
}

// admitsController reports whether one of the peers selects a pod of an ingress controller.
func (p *namespaceRules) admitsController(peers []networkingv1.NetworkPolicyPeer) bool {
	for i := range peers {
		if peers[i].IPBlock != nil {
			continue // a block that contains the proxies' addresses admits them like any others
		}
		s := p.selectionOf(&peers[i])
		for _, c := range controllers {
			its := p.c.namespaceLabels(c.namespace)
			if its == nil {
				its = c.labels
			}
			if !p.spendWork(s.cost) || !s.matchesNamespace(c.namespace, its) {
				continue
			}
			for _, pod := range c.pods {
				if p.spendWork(s.cost) && s.pods.Matches(pod) {
					return true
				}
			}
		}
	}
	return false
}

// proxyEnds returns the ingress proxies if a rule for connections to a pod admits them.
func (p *namespaceRules) proxyEnds(peers []networkingv1.NetworkPolicyPeer, none bool) []peerSet {
	if none || !p.admitsController(peers) {
		return nil
	}
	var out []peerSet
	for _, f := range p.families {
		kind := addresses4
		if f == 6 {
			kind = addresses6
		}
		out = append(out, peerSet{f, p.insert(setProxies+strconv.Itoa(f), kind, func() map[string]bool { return p.c.proxies[f] })})
	}
	return out
}
