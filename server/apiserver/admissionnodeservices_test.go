// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	core "k8s.io/kubernetes/pkg/apis/core"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var (
	asNode  = &user.DefaultInfo{Name: "system:node:one", Groups: []string{user.NodesGroup}}
	asAdmin = &user.DefaultInfo{Name: "admin", Groups: []string{user.SystemPrivilegedGroup}}
)

// change is what the plugin is asked about; without old the Node is created.
func change(now, old *core.Node, by user.Info) admission.Attributes {
	kind, resource := core.Kind("Node").WithVersion("v1"), core.Resource("nodes").WithVersion("v1")
	if old == nil {
		return admission.NewAttributesRecord(now, nil, kind, "", now.Name, resource, "", admission.Create, &metav1.CreateOptions{}, false, by)
	}
	return admission.NewAttributesRecord(now, old, kind, "", now.Name, resource, "", admission.Update, &metav1.UpdateOptions{}, false, by)
}

func labelled(labels ...string) *core.Node {
	n := &core.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", Labels: map[string]string{"kept": "true"}}}
	for _, l := range labels {
		name, value, _ := strings.Cut(l, "=")
		n.Labels[name] = value
	}
	return n
}

// TestRegisteredNodeCannotChangeServicesLabel: a node in the cluster does not choose whether it gets the load
// balancer's Services; one that joins may.
func TestRegisteredNodeCannotChangeServicesLabel(t *testing.T) {
	joined, trouble := false, error(nil)
	p := newNodeClaims(AdmissionOptions{Own: "boat", JustJoined: func(_ context.Context, node string) (bool, error) {
		testenv.Equal(t, node, "one", "asked for")
		return joined, trouble
	}})
	for _, label := range []string{clusterconfig.LoadBalancerLabel, clusterconfig.K3sLoadBalancerLabel} {
		for what, c := range map[string]struct{ now, old *core.Node }{
			"added": {labelled(label + "=true"), labelled()}, "changed": {labelled(label + "=true"), labelled(label + "=false")}, "removed": {labelled(), labelled(label + "=true")},
			"emptied": {labelled(label + "="), labelled()},
		} {
			if err := p.Validate(t.Context(), change(c.now, c.old, asNode), nil); err == nil || !strings.Contains(err.Error(), label+" is the administrator's") {
				t.Errorf("%s %s by the node: %v", label, what, err)
			}
			testenv.Check(t, p.Validate(t.Context(), change(c.now, c.old, asAdmin), nil), "%s %s by the administrator", label, what)
		}
		testenv.Check(t, p.Validate(t.Context(), change(labelled(label+"=true", "other=true"), labelled(label+"=true"), asNode), nil), "another label is added")
		registers := func(by user.Info) bool {
			t.Helper()
			n := labelled(label + "=true")
			testenv.NoError(t, errors.Join(p.Admit(t.Context(), change(n, nil, by), nil), p.Validate(t.Context(), change(n, nil, by), nil)))
			testenv.Equal(t, n.Labels["kept"], "true", "another label is lost:")
			return n.Labels[label] == "true"
		}
		joined = true
		testenv.True(t, registers(asNode), "%s: a machine that joins does not have it from --node-label", label)
		joined = false
		testenv.False(t, registers(asNode), "%s: a node that makes itself again has it", label)
		testenv.True(t, registers(asAdmin), "%s: the administrator cannot give it", label)
	}
	trouble = errors.New("the store is away")
	testenv.Fails(t, p.Admit(t.Context(), change(labelled(clusterconfig.LoadBalancerLabel+"=true"), nil, asNode), nil), "it is not known when the machine joined, and the label is believed")
	testenv.Check(t, p.Admit(t.Context(), change(labelled(), nil, asNode), nil), "without the label")
}

// TestExcludedNodeCannotReturnByItself: a node may keep itself out of Services; once it is out, the user who put it
// there takes it back in.
func TestExcludedNodeCannotReturnByItself(t *testing.T) {
	p := newNodeClaims(AdmissionOptions{})
	const label = corev1.LabelNodeExcludeBalancers
	out, in := labelled(label+"="), labelled()
	for what, c := range map[string]struct {
		now, old *core.Node
		by       user.Info
		refused  bool
	}{
		"removed by the node": {in, out, asNode, true}, "changed by the node": {labelled(label + "=no"), out, asNode, true}, "kept by the node": {out, out, asNode, false},
		"added by the node": {out, in, asNode, false}, "removed by the administrator": {in, out, asAdmin, false},
	} {
		if err := p.Validate(t.Context(), change(c.now, c.old, c.by), nil); (err != nil) != c.refused || err != nil && !strings.Contains(err.Error(), label+" excludes a node") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestPoolAddressIsNoNodesAddress: what a Service has from a pool is no machine's; its nodes' addresses, and those of
// other load balancers, may be.
func TestPoolAddressIsNoNodesAddress(t *testing.T) {
	index := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	for name, ip := range map[string]string{"pooled": "192.0.2.200", "nodes": "192.0.2.3", "other": "192.0.2.4"} {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
		in := corev1.LoadBalancerIngress{IP: ip}
		if name == "nodes" {
			in.Ports = []corev1.PortStatus{{Port: 443, Protocol: corev1.ProtocolTCP}}
		}
		if name != "other" {
			s.Status.Conditions = []metav1.Condition{{Type: loadbalancer.Condition, Status: metav1.ConditionTrue}}
		}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{in}
		testenv.NoError(t, index.Add(s))
	}
	p := newNodeClaims(AdmissionOptions{})
	p.services = corelisters.NewServiceLister(index)
	for ip, want := range map[string]string{"192.0.2.200": "is the address of the Service default/pooled", "192.0.2.3": "", "192.0.2.4": "", "192.0.2.9": ""} {
		err := p.mayHaveBesideServices(netip.MustParseAddr(ip))
		testenv.False(t, want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)),
			"%s: %v, want %q", ip, err, want)
	}
}
