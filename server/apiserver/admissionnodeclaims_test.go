// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	core "k8s.io/kubernetes/pkg/apis/core"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func nodeAt(name string, ips ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, ip := range ips {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	return n
}

// TestNodesClaimsAreChecked: what a node says of itself with its own certificate.
func TestNodesClaimsAreChecked(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.Admission = &AdmissionOptions{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")},
		Servers:  func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
		Own:      "boat", ServerLabel: "node-role.kubernetes.io/control-plane",
		Certified: func(_ context.Context, node string) ([]netip.Addr, error) {
			if node != "one" {
				return nil, nil
			}
			return []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("198.51.100.3")}, nil
		},
	}
	r := f.start(t, o)
	admin, node := client(t, r.admin()).CoreV1().Nodes(), client(t, r.withLeaf(f.leaf.node)).CoreV1().Nodes()
	const key, sameKey, otherKey = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQF=", "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
	withKey := func(n *corev1.Node, key string) *corev1.Node {
		metav1.SetMetaDataAnnotation(&n.ObjectMeta, clusterconfig.WireGuardAnnotation, key)
		return n
	}
	testenv.Must(admin.Create(t.Context(), withKey(nodeAt("two", "192.0.2.2"), key), metav1.CreateOptions{}))(t)
	eventually(t, "the other node is known", func() error { // to the plugin's informer
		_, err := node.Create(t.Context(), nodeAt("one", "192.0.2.2"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil && strings.Contains(err.Error(), "the address of the node two") {
			return nil
		}
		return fmt.Errorf("it may have the other one's address: %v", err)
	})
	ranges := nodeAt("one", "192.0.2.3")
	ranges.Spec.PodCIDR, ranges.Spec.PodCIDRs = "10.42.1.0/24", []string{"10.42.1.0/24"}
	posing, held := nodeAt("one", "192.0.2.3"), nodeAt("one", "192.0.2.3")
	posing.Annotations = map[string]string{clusterconfig.ServerIDAnnotation: "somebody's"}
	held.Finalizers = []string{clusterconfig.MemberFinalizer}
	autonomous := nodeAt("one", "192.0.2.3")
	autonomous.Annotations = map[string]string{clusterconfig.AutonomyAnnotation: "24h"}
	leaving := nodeAt("one", "192.0.2.3")
	leaving.Annotations = map[string]string{clusterconfig.LeaveAnnotation: "0s"}
	inside := func(networks string) *corev1.Node {
		n := nodeAt("one", "192.0.2.3")
		n.Annotations = map[string]string{loadbalancer.NetworksAnnotation: networks}
		return n
	}
	for what, tt := range map[string]struct {
		node *corev1.Node
		want string
	}{
		"in all networks":              {inside("192.0.2.0/24,0.0.0.0/0"), "no interface is in a network as wide as 0.0.0.0/0"},
		"in half of all":               {inside("128.0.0.0/1"), "as wide as 128.0.0.0/1"},
		"in all of IPv6":               {inside("::/0"), "as wide as ::/0"},
		"in what is no network":        {inside("192.0.2.0"), "is no network"},
		"at more than it can have":     {nodeAt("one", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7"), "has 4 addresses at most"},
		"as another's server":          {posing, "only servers may label"},
		"as a member of the store":     {held, "only servers may label"},
		"and keeps its pods":           {autonomous, "the annotation coracle.dev/autonomy is the administrator's"},
		"and is to leave":              {leaving, "by an administrator's order"},
		"with a pod network":           {ranges, "does not choose its own pod network"},
		"at a pod's address":           {nodeAt("one", "10.42.0.9"), "network for pods or Services"},
		"at the API's Service":         {nodeAt("one", "192.0.2.3", "10.43.0.1"), "network for pods or Services"},
		"at a server's address":        {nodeAt("one", "192.0.2.1"), "address of a server"},
		"in another form":              {nodeAt("one", "::ffff:192.0.2.1"), "address of a server"},
		"its own in another form":      {nodeAt("one", "::ffff:192.0.2.3"), "has to be written as 192.0.2.3"},
		"at a loopback address":        {nodeAt("one", "127.0.0.1"), "cannot be the address of a machine"},
		"at a link's address":          {nodeAt("one", "fe80::1%eth0"), "cannot be the address of a machine"},
		"at every address":             {nodeAt("one", "0.0.0.0"), "cannot be the address of a machine"},
		"at what is no address":        {nodeAt("one", "192.0.2.3/24"), "is no IP address"},
		"at somebody else's":           {nodeAt("one", "192.0.2.3", "203.0.113.9"), "203.0.113.9 is not an address for which the node one has a certificate"},
		"at the address of a live one": {nodeAt("one", "192.0.2.2"), "address of the node two"},
		"with another one's key":       {withKey(nodeAt("one", "192.0.2.3"), key), "is that of the node two"},
		"with that key in other words": {withKey(nodeAt("one", "192.0.2.3"), sameKey), "is that of the node two"},
		"with what is no key":          {withKey(nodeAt("one", "192.0.2.3"), "short"), "is no WireGuard key"},
	} {
		if _, err := node.Create(t.Context(), tt.node, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("a node that registers %s: %v, want %q", what, err, tt.want)
		}
	}
	services := client(t, r.admin()).CoreV1().Services("default")
	pooled, err := services.Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "pooled"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 443}}}}, metav1.CreateOptions{})
	testenv.NoError(t, err)
	pooled.Status.Conditions = []metav1.Condition{{Type: loadbalancer.Condition, Status: metav1.ConditionTrue, Reason: "Served", LastTransitionTime: metav1.Now()}}
	pooled.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.3"}}
	pooled, err = services.UpdateStatus(t.Context(), pooled, metav1.UpdateOptions{})
	testenv.NoError(t, err)
	eventually(t, "a Service's address from a pool is no node's", func() error { // as soon as the plugin's informer knows it
		_, err := node.Create(t.Context(), nodeAt("one", "198.51.100.3"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil && strings.Contains(err.Error(), "the address of the Service default/pooled") {
			return nil
		}
		return fmt.Errorf("it may have the Service's address: %v", err)
	})
	testenv.NoError(t, services.Delete(t.Context(), pooled.Name, metav1.DeleteOptions{}))
	eventually(t, "the Service's address is free", func() error {
		_, err := node.Create(t.Context(), nodeAt("one", "198.51.100.3"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	})
	fresh := nodeAt("one", "192.0.2.3")
	fresh.Labels = map[string]string{clusterconfig.OwnAddressesLabel: "true"}
	fresh.Spec.Taints = []corev1.Taint{{Key: "own", Effect: corev1.TaintEffectNoSchedule}, {Key: "node.cloudprovider.kubernetes.io/uninitialized", Value: "true", Effect: corev1.TaintEffectNoSchedule}}
	if made, err := node.Create(t.Context(), fresh, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	} else if slices.ContainsFunc(made.Spec.Taints, func(t corev1.Taint) bool { return t.Key != "own" && t.Key != "node.kubernetes.io/not-ready" }) {
		t.Errorf("the node waits for a cloud provider: %v", made.Spec.Taints)
	}
	patch := func(as corev1client.NodeInterface, body string, sub ...string) error {
		_, err := as.Patch(t.Context(), "one", types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	refused := func(what, want string, err error) {
		t.Helper()
		testenv.False(t, err == nil || !strings.Contains(err.Error(), want), "%s: %v, want %q", what, err, want)
	}
	refused("a pod network later", "does not choose its own pod network", patch(node, `{"spec":{"podCIDR":"10.42.1.0/24","podCIDRs":["10.42.1.0/24"]}}`))
	refused("another's address later", "address of the node two", patch(node, `{"status":{"addresses":[{"type":"ExternalIP","address":"192.0.2.2"}]}}`, "status"))
	refused("the load balancer's label", "is the administrator's", patch(node, `{"metadata":{"labels":{"coracle.dev/enable-servicelb":"true"}}}`))
	refused("another's key later", "is that of the node two", patch(node, `{"metadata":{"annotations":{"`+clusterconfig.WireGuardAnnotation+`":"`+sameKey+`"}}}`))
	for range 2 { // its own, which it may repeat
		testenv.Check(t, patch(node, `{"metadata":{"annotations":{"`+clusterconfig.WireGuardAnnotation+`":"`+otherKey+`"}}}`), "a key of its own")
	}
	testenv.Check(t, patch(admin, `{"spec":{"podCIDR":"10.42.1.0/24","podCIDRs":["10.42.1.0/24"]}}`), "the controllers give it a pod network")
	testenv.Check(t, patch(node, `{"status":{"addresses":[{"type":"ExternalIP","address":"198.51.100.3"}]}}`, "status"), "an address of its own")
	autonomy := `{"metadata":{"annotations":{"coracle.dev/autonomy":"%s"}}}`
	testenv.Check(t, patch(admin, fmt.Sprintf(autonomy, "24h")), "an administrator gives a node an autonomy")
	for _, other := range []string{"9000h", ""} {
		refused("another autonomy", "is the administrator's", patch(node, fmt.Sprintf(autonomy, other)))
	}
	testenv.Check(t, patch(node, `{"metadata":{"annotations":{"coracle.dev/stopped":"boot"}}}`), "a node stops its pods")
	leave := `{"metadata":{"annotations":{"coracle.dev/leave":"1m0s"}}}`
	testenv.Check(t, patch(node, leave), "a node leaves")
	testenv.NoError(t,
		patch(admin, `{"metadata":{"annotations":{"coracle.dev/leave":null},"finalizers":["`+clusterconfig.MemberFinalizer+`"]}}`))
	refused("a server's node leaves by itself", "by an administrator's order", patch(node, leave))
	// The other one dies; its address is free.
	dead := `{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`
	testenv.Must(admin.Patch(t.Context(), "two", types.StrategicMergePatchType, []byte(dead), metav1.PatchOptions{}, "status"))(t)
	eventually(t, "a dead node's address is free", func() error {
		return patch(node, `{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.2"}]}}`, "status")
	})
}

// TestMovingNodeKeepsOneAddress: a node that moves from one address of its network to the next one does not keep all of
// them by its own word.
func TestMovingNodeKeepsOneAddress(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	certified := make(chan []netip.Addr, 1) // what it joined with last
	certified <- nil
	o.Admission = &AdmissionOptions{ServerLabel: "node-role.kubernetes.io/control-plane", Certified: func(context.Context, string) ([]netip.Addr, error) {
		is := <-certified
		certified <- is
		return is, nil
	}}
	r := f.start(t, o)
	node := client(t, r.withLeaf(f.leaf.node)).CoreV1().Nodes()
	moves := func(to string) {
		<-certified
		certified <- []netip.Addr{netip.MustParseAddr(to)}
	}
	says := func(ips ...string) error {
		n, err := node.Get(t.Context(), "one", metav1.GetOptions{})
		if err == nil {
			n.Status.Addresses = nodeAt("one", ips...).Status.Addresses
			_, err = node.UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
		}
		return err
	}
	moves("192.0.2.10")
	testenv.Must(node.Create(t.Context(), nodeAt("one", "192.0.2.10"), metav1.CreateOptions{}))(t)
	had := []string{"192.0.2.10"}
	for i := 11; i < 18; i++ {
		next := fmt.Sprint("192.0.2.", i)
		moves(next)
		err := says(append(slices.Clone(had), next)...)
		if refused := err != nil && strings.Contains(err.Error(), "has 4 addresses at most"); refused != (len(had) == 4) || err != nil && !refused {
			t.Errorf("with %d addresses it says another one: %v", len(had), err)
		}
		if err == nil {
			had = append(had, next)
		}
	}
	testenv.Check(t, says("192.0.2.17"), "where it is")
	moves("192.0.2.10")
	testenv.Check(t, says("192.0.2.10"), "where it was first")
}

// TestServersNodeMayClaimServersAddress: a server's own node may have the server's address, and any server's node
// another's, for two that exchange theirs must not wait for one another.
func TestServersNodeMayClaimServersAddress(t *testing.T) {
	p := newNodeClaims(AdmissionOptions{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, Own: "boat", ServerLabel: "role",
		Servers: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
	})
	own, labelled := &core.Node{ObjectMeta: metav1.ObjectMeta{Name: "boat"}}, &core.Node{ObjectMeta: metav1.ObjectMeta{Name: "ship", Labels: map[string]string{"role": ""}}}
	for _, n := range []*core.Node{own, labelled} {
		testenv.Check(t, p.mayHave(t.Context(), n, core.NodeAddress{Type: core.NodeInternalIP, Address: "192.0.2.1"}), "%s", n.Name)
		testenv.Fails(t, p.mayHave(t.Context(), n, core.NodeAddress{Type: core.NodeInternalIP, Address: "10.42.0.1"}), "%s may have a pod's address", n.Name)
	}
	testenv.Check(t, p.mayHave(t.Context(), &core.Node{ObjectMeta: metav1.ObjectMeta{Name: "raft"}}, core.NodeAddress{Type: core.NodeHostName, Address: "a-host-name"}))
}

// warnings are what the API server warns of.
type warnings []string

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) { *w = append(*w, text) }

// TestMalformedAutonomyIsWarnedOf: an administrator sees what is wrong when the annotation is written, and not again.
func TestMalformedAutonomyIsWarnedOf(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.Admission = &AdmissionOptions{}
	r := f.start(t, o)
	var got warnings
	config := r.admin()
	config.WarningHandler = &got
	nodes := client(t, config).CoreV1().Nodes()
	n := testenv.Must(nodes.Create(t.Context(), nodeAt("one"), metav1.CreateOptions{}))(t)
	for _, value := range []string{"24h", "2d", "2d", "48h"} {
		metav1.SetMetaDataAnnotation(&n.ObjectMeta, clusterconfig.AutonomyAnnotation, value)
		n.Labels = map[string]string{"changed": value}
		n = testenv.Must(nodes.Update(t.Context(), n, metav1.UpdateOptions{}))(t)
	}
	testenv.True(t, len(got) == 1 && strings.Contains(got[0], `is "2d": it has to be a duration`), "warnings: %q", got)
}
