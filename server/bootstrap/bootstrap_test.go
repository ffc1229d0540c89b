// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var (
	quiet = slog.New(slog.NewTextHandler(io.Discard, nil))
	dns   = net.ParseIP("10.43.0.10")
)

func node(name, uid string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func TestApplyMakesDNSServiceAndRoles(t *testing.T) {
	c := fake.NewClientset()
	ctx := t.Context()
	for range 2 {
		testenv.NoError(t, Apply(ctx, Options{Client: c, ClusterDNS: dns}))
	}
	s := testenv.Must(c.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{}))(t)
	if s.Spec.ClusterIP != "10.43.0.10" || len(s.Spec.Selector) != 0 || *s.Spec.InternalTrafficPolicy != corev1.ServiceInternalTrafficPolicyLocal ||
		len(s.Spec.Ports) != 2 || s.Spec.Ports[0].TargetPort.IntValue() != DNSPort {
		t.Errorf("%+v", s.Spec)
	}
	all, err := c.RbacV1().ClusterRoles().Get(ctx, "system:coracle:network", metav1.GetOptions{})
	if err != nil || !slices.ContainsFunc(all.Rules, func(r rbacv1.PolicyRule) bool {
		return slices.Equal(r.NonResourceURLs, []string{clustersettings.Path}) && slices.Equal(r.Verbs, []string{"get"})
	}) {
		t.Errorf("%+v, %v", all, err)
	}
	some, err := c.RbacV1().Roles("kube-system").Get(ctx, "system:coracle:network:holders", metav1.GetOptions{})
	if err != nil || len(some.Rules) != 1 || !slices.Equal(some.Rules[0].ResourceNames, []string{"network-backend.coracle", "vip.coracle", "load-balancer.coracle", "coredns-custom"}) {
		t.Errorf("%+v, %v", some, err)
	}
	allows, err := c.RbacV1().ClusterRoles().Get(ctx, clusterconfig.ExternalIPsRole, metav1.GetOptions{})
	if err != nil || len(allows.Rules) != 1 || !slices.Equal(allows.Rules[0].Resources, []string{"serviceexternalips"}) || !slices.Equal(allows.Rules[0].Verbs, []string{"use"}) ||
		slices.ContainsFunc(slices.Collect(maps.Keys(allows.Labels)), func(l string) bool { return strings.Contains(l, "aggregate") }) {
		t.Errorf("%+v, %v", allows, err)
	}
	shows, err := c.RbacV1().ClusterRoles().Get(ctx, clusterconfig.StatusRole, metav1.GetOptions{})
	if err != nil || len(shows.Rules) != 1 || !slices.Equal(shows.Rules[0].NonResourceURLs, []string{"/coracle/status"}) || !slices.Equal(shows.Rules[0].Verbs, []string{"get"}) {
		t.Errorf("%+v, %v", shows, err)
	}
	clocks, err := c.RbacV1().ClusterRoles().Get(ctx, clusterconfig.ClocksRole, metav1.GetOptions{})
	if err != nil || len(clocks.Rules) != 1 || !slices.Equal(clocks.Rules[0].NonResourceURLs, []string{"/coracle/clocks"}) || !slices.Equal(clocks.Rules[0].Verbs, []string{"get"}) {
		t.Errorf("%+v, %v", clocks, err)
	}
	names, err := c.RbacV1().ClusterRoles().Get(ctx, clusterconfig.ConsoleRole, metav1.GetOptions{})
	if err != nil || len(names.Rules) != 1 || !slices.Equal(names.Rules[0].NonResourceURLs, []string{"/coracle/console", "/coracle/namespaces", "/coracle/metrics-history"}) || !slices.Equal(names.Rules[0].Verbs, []string{"get"}) {
		t.Errorf("%+v, %v", names, err)
	}
	for _, b := range bindings {
		got, err := c.RbacV1().ClusterRoleBindings().Get(ctx, b.name, metav1.GetOptions{})
		testenv.True(t, err == nil && got.RoleRef.Name == b.role && got.Subjects[0].Name == b.user+b.group, "%s: %+v, %v", b.name, got, err)
	}
	// Another address, then none.
	testenv.NoError(t, Apply(ctx, Options{Client: c, ClusterDNS: net.ParseIP("10.43.0.11")}))
	if s, err = c.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{}); err != nil || s.Spec.ClusterIP != "10.43.0.11" {
		t.Errorf("%+v, %v", s.Spec, err)
	}
	testenv.NoError(t, Apply(ctx, Options{Client: c}))
	testenv.Fails(t, testenv.Err(c.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{})), "DNS is off and its Service is there")
}

func TestOwnDNSIsLeftAlone(t *testing.T) {
	own := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.43.0.10", Selector: map[string]string{"app": "mydns"}}}
	c := fake.NewClientset(own)
	testenv.NoError(t, Apply(t.Context(), Options{Client: c}))
	testenv.Check(t, testenv.Err(c.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})))
}

// slicesOf says which addresses the endpoint slices hold, as text.
func slicesOf(t *testing.T, c *fake.Clientset) string {
	t.Helper()
	list := testenv.Must(c.DiscoveryV1().EndpointSlices("kube-system").List(t.Context(), metav1.ListOptions{}))(t)
	var out []string
	for _, s := range list.Items {
		out = append(out, s.Name+"="+s.Endpoints[0].Addresses[0]+"@"+*s.Endpoints[0].NodeName+"/"+string(s.OwnerReferences[0].UID))
	}
	return strings.Join(out, " ")
}

func TestDNSEndpointsFollowNodes(t *testing.T) {
	c := fake.NewClientset(node("a", "1", "fd00::1", "192.0.2.1"), node("noaddress", "2"))
	stop := run(t, c, dns)
	eventually(t, "a's slice", func() bool { return slicesOf(t, c) == "kube-dns-a=192.0.2.1@a/1" })
	ctx := t.Context()
	testenv.Must(c.CoreV1().Nodes().Create(ctx, node("b", "3", "192.0.2.2"), metav1.CreateOptions{}))(t)
	eventually(t, "b's slice", func() bool {
		return slicesOf(t, c) == "kube-dns-a=192.0.2.1@a/1 kube-dns-b=192.0.2.2@b/3"
	})
	testenv.Must(c.CoreV1().Nodes().UpdateStatus(ctx, node("a", "1", "192.0.2.9"), metav1.UpdateOptions{}))(t)
	testenv.NoError(t, c.CoreV1().Nodes().Delete(ctx, "b", metav1.DeleteOptions{}))
	eventually(t, "the new address", func() bool { return slicesOf(t, c) == "kube-dns-a=192.0.2.9@a/1" })
	// Someone deletes it.
	testenv.NoError(t, c.DiscoveryV1().EndpointSlices("kube-system").Delete(ctx, "kube-dns-a", metav1.DeleteOptions{}))
	eventually(t, "the slice to come back", func() bool { return slicesOf(t, c) == "kube-dns-a=192.0.2.9@a/1" })
	stop()

	// A second term finds all in order and writes nothing; one without DNS takes it away.
	written := testenv.Must(c.Tracker().Watch(discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), "kube-system"))(t)
	stop = run(t, c, dns)
	testenv.Must(c.CoreV1().Nodes().Create(ctx, node("c", "4", "192.0.2.3"), metav1.CreateOptions{}))(t)
	eventually(t, "c's slice", func() bool { return strings.Contains(slicesOf(t, c), "kube-dns-c") })
	stop()
	testenv.Equal(t, len(written.ResultChan()), 1, "writes for one new node:")
	stop = run(t, c, nil)
	eventually(t, "the slices to go", func() bool { return slicesOf(t, c) == "" })
	stop()
}

// TestDNSEndpointsCacheIsBehind: a slice that was made a moment ago, and of which the cache has not heard yet, is no
// trouble. One of that name that another owner has made is.
func TestDNSEndpointsCacheIsBehind(t *testing.T) {
	c := fake.NewClientset()
	f := informers.NewSharedInformerFactory(c, 0)
	d := NewDNSEndpoints(c, f, dns, quiet)
	testenv.NoError(t, f.Core().V1().Nodes().Informer().GetStore().Add(node("a", "1", "192.0.2.1")))
	for range 2 {
		testenv.NoError(t, d.reconcile(t.Context()))
	}
	slices := c.DiscoveryV1().EndpointSlices("kube-system")
	s := testenv.Must(slices.Get(t.Context(), "kube-dns-a", metav1.GetOptions{}))(t)
	s.Labels[discoveryv1.LabelManagedBy] = "somebody"
	testenv.Must(slices.Update(t.Context(), s, metav1.UpdateOptions{}))(t)
	if err := d.reconcile(t.Context()); !apierrors.IsAlreadyExists(err) {
		t.Errorf("another owner's: %v", err)
	}
}

func run(t *testing.T, c *fake.Clientset, dns net.IP) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	watches := func() (n int) {
		for _, a := range c.Actions() {
			if a.GetVerb() == "watch" {
				n++
			}
		}
		return n
	}
	before := watches()
	f := informers.NewSharedInformerFactory(c, 0)
	d := NewDNSEndpoints(c, f, dns, quiet)
	f.Start(ctx.Done())
	// A fake tells a watch nothing of what was deleted between the list and its beginning.
	eventually(t, "nodes and slices to be watched", func() bool { return watches() >= before+2 })
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	return func() {
		cancel()
		testenv.Check(t, <-done)
		f.Shutdown()
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testenv.Until(t, 2*time.Minute, what, ok)
}

// TestNetworkBackendIsRecordedOnce: a cluster's network back end is written down once; what an administrator has said
// since stays, unless the pod network becomes another plugin's, or is not any more.
func TestNetworkBackendIsRecordedOnce(t *testing.T) {
	c := fake.NewClientset()
	maps := c.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	for _, step := range []struct{ own, set, want string }{
		{"vxlan", "", "vxlan"}, {"host-gw", "", "vxlan"}, {"vxlan", "wireguard", "wireguard"}, {"none", "", "none"}, {"none", "", "none"}, {"host-gw", "", "host-gw"},
	} {
		if step.set != "" {
			m := testenv.Must(maps.Get(t.Context(), clusterconfig.BackendConfigMap, metav1.GetOptions{}))(t)
			m.Data[clusterconfig.BackendData] = step.set
			testenv.Must(maps.Update(t.Context(), m, metav1.UpdateOptions{}))(t)
		}
		testenv.NoError(t, Apply(t.Context(), Options{Client: c, ClusterDNS: dns, NetworkBackend: step.own}))
		if m, err := maps.Get(t.Context(), clusterconfig.BackendConfigMap, metav1.GetOptions{}); err != nil || m.Data[clusterconfig.BackendData] != step.want {
			t.Errorf("%+v: got %v, %v", step, m, err)
		}
	}
}

// TestBackendIsWrittenAgain: where the ConfigMap is gone, or says that the pod network is another plugin's though it is
// not, what the cluster had is written again: what all Nodes say, which a server that was off does not know, or else
// what this server heard last, which may be something else than it was started with.
func TestBackendIsWrittenAgain(t *testing.T) {
	for name, c := range map[string]struct {
		own, last string
		nodes     []string // what they say; empty: nothing
		stored    string   // in the ConfigMap; empty: there is none
		want      string
	}{
		"this server was off at the change":          {"vxlan", "vxlan", []string{"wireguard", "wireguard"}, "", "wireguard"},
		"changed since this server started":          {"vxlan", "wireguard", nil, "", "wireguard"},
		"nodes differ":                               {"vxlan", "wireguard", []string{"host-gw", "vxlan"}, "", "wireguard"},
		"a node says nothing":                        {"vxlan", "wireguard", []string{"host-gw", ""}, "", "wireguard"},
		"no node says anything":                      {"vxlan", "wireguard", []string{"", ""}, "", "wireguard"},
		"nodes say what makes no sense":              {"vxlan", "wireguard", []string{"pigeons"}, "", "wireguard"},
		"nodes say none":                             {"vxlan", "wireguard", []string{"none"}, "", "wireguard"},
		"the cluster begins":                         {"host-gw", "", nil, "", "host-gw"},
		"another plugin's until now":                 {"host-gw", "", []string{"vxlan"}, "", "host-gw"},
		"another plugin's until now, and it is said": {"host-gw", "", []string{"vxlan"}, "none", "host-gw"},
		"another plugin's from now on":               {"none", "", []string{"vxlan"}, "", "none"},
		"none, by hand":                              {"vxlan", "vxlan", []string{"wireguard"}, "none", "wireguard"},
		"none, by hand, and no nodes":                {"vxlan", "host-gw", nil, "none", "host-gw"},
		"it is there":                                {"vxlan", "vxlan", []string{"vxlan"}, "wireguard", "wireguard"},
	} {
		t.Run(name, func(t *testing.T) {
			api := fake.NewClientset()
			maps := api.CoreV1().ConfigMaps(metav1.NamespaceSystem)
			if c.stored != "" {
				m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: clusterconfig.BackendConfigMap}, Data: map[string]string{clusterconfig.BackendData: c.stored}}
				testenv.Must(maps.Create(t.Context(), m, metav1.CreateOptions{}))(t)
			}
			for i, says := range c.nodes {
				n := node(string(rune('a'+i)), "1", "192.0.2.1")
				if says != "" {
					n.Annotations = map[string]string{clusterconfig.BackendAnnotation: says}
				}
				testenv.Must(api.CoreV1().Nodes().Create(t.Context(), n, metav1.CreateOptions{}))(t)
			}
			testenv.NoError(t, Apply(t.Context(), Options{Client: api, ClusterDNS: dns, NetworkBackend: c.own, LastBackend: c.last}))
			if m, err := maps.Get(t.Context(), clusterconfig.BackendConfigMap, metav1.GetOptions{}); err != nil || m.Data[clusterconfig.BackendData] != c.want {
				t.Errorf("got %v, %v, want %s", m, err, c.want)
			}
		})
	}
}
