// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	core "k8s.io/kubernetes/pkg/apis/core"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// wanting is a Service with these external IPs and TCP ports.
func wanting(namespace, name string, ips string, ports ...int32) *core.Service {
	s := &core.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	s.Spec.ExternalIPs = strings.Fields(ips) //nolint:staticcheck // deprecated, and served all the same
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, core.ServicePort{Port: p, Protocol: core.ProtocolTCP})
	}
	return s
}

// having is the same as others see it.
func having(namespace, name string, ips string, ports ...int32) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{ExternalIPs: strings.Fields(ips)}}
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: p})
	}
	return s
}

// rule is an authorizer that allows the user jane the use of one address in the namespace mallory, and administrators
// everything.
type rule struct{ authorizer.Authorizer }

func (rule) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	asked := fmt.Sprint(a.GetUser().GetName(), a.GetVerb(), a.GetNamespace(), a.GetAPIGroup(), a.GetResource(), a.GetName())
	if a.GetUser().GetName() == "admin" || asked == fmt.Sprint("jane", "use", "mallory", "coracle.dev", "serviceexternalips", "203.0.113.1") {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

// pluginWith has these Services, a node and a server.
func pluginWith(t *testing.T, services cache.Indexer) *serviceExternalIPs {
	t.Helper()
	nodes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}}
	testenv.NoError(t, nodes.Add(n))
	p := newServiceExternalIPs(&NodeClaims{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd43::/112")},
		Servers:  func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.6")} },
	})
	p.services, p.nodes = corelisters.NewServiceLister(services), corelisters.NewNodeLister(nodes)
	p.SetAuthorizer(rule{})
	testenv.Check(t, p.ValidateInitialization())
	return p
}

// writeOf is a user's write of a Service; old is nil where it creates it.
func writeOf(who user.Info, now, old *core.Service, subresource string) admission.Attributes {
	kind, resource := core.Kind("Service").WithVersion("v1"), core.Resource("services").WithVersion("v1")
	if old == nil {
		return admission.NewAttributesRecord(now, nil, kind, now.Namespace, now.Name, resource, subresource, admission.Create, &metav1.CreateOptions{}, false, who)
	}
	return admission.NewAttributesRecord(now, old, kind, now.Namespace, now.Name, resource, subresource, admission.Update, &metav1.UpdateOptions{}, false, who)
}

// TestExternalIPsNeedPermission: the right to write Services gives no user an external IP that a Service has not got
// already.
func TestExternalIPsNeedPermission(t *testing.T) {
	p := pluginWith(t, cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}))
	jane := &user.DefaultInfo{Name: "jane"}
	withoutPorts := wanting("mallory", "web", "203.0.113.9")
	for what, c := range map[string]struct {
		who      user.Info
		now, old *core.Service
		refused  string
	}{
		"an administrator's":          {who: asAdmin, now: wanting("mallory", "web", "203.0.113.9", 80)},
		"none":                        {who: jane, now: wanting("mallory", "web", "", 80)},
		"one that she may use":        {who: jane, now: wanting("mallory", "web", "203.0.113.1", 80)},
		"in other words":              {who: jane, now: wanting("mallory", "web", "203.000.113.001", 80)},
		"the same elsewhere":          {who: jane, now: wanting("alice", "web", "203.0.113.1", 80), refused: "203.0.113.1"},
		"another one":                 {who: jane, now: wanting("mallory", "web", "203.0.113.1 203.0.113.9", 80), refused: "203.0.113.9"},
		"IPv6":                        {who: jane, now: wanting("mallory", "web", "2001:db8::9", 80), refused: "2001:db8::9"},
		"without a port for now":      {who: jane, now: withoutPorts, refused: "203.0.113.9"},
		"added":                       {who: jane, now: wanting("mallory", "web", "203.0.113.9", 80), old: wanting("mallory", "web", "", 80), refused: "203.0.113.9"},
		"what the Service has":        {who: jane, now: wanting("mallory", "web", "203.0.113.9", 80), old: wanting("mallory", "web", "203.0.113.9", 80)},
		"a port there":                {who: jane, now: wanting("mallory", "web", "203.0.113.9", 80, 443), old: wanting("mallory", "web", "203.0.113.9", 80)},
		"one beside what it has":      {who: jane, now: wanting("mallory", "web", "203.0.113.9 203.0.113.8", 80), old: wanting("mallory", "web", "203.0.113.9", 80), refused: "203.0.113.8"},
		"one of two":                  {who: jane, now: wanting("mallory", "web", "203.0.113.9", 80), old: wanting("mallory", "web", "203.0.113.9 203.0.113.8", 80)},
		"what it has in other words":  {who: jane, now: wanting("mallory", "web", "203.000.113.009", 80), old: wanting("mallory", "web", "203.0.113.9", 80)},
		"another Service's by a copy": {who: jane, now: wanting("mallory", "copy", "203.0.113.9", 80), refused: "203.0.113.9"},
	} {
		err := p.Validate(t.Context(), writeOf(c.who, c.now, c.old, ""), nil)
		if c.refused == "" && err != nil || c.refused != "" && (err == nil || !strings.Contains(err.Error(), `"jane" may not give a Service the external IP `+c.refused+",") ||
			!strings.Contains(err.Error(), "kubectl create rolebinding external-ips -n "+c.now.Namespace+" --clusterrole="+clusterconfig.ExternalIPsRole+` --user="jane"`)) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestReservedExternalIPs: no user gives a Service an address of the cluster's own, or what another namespace has.
func TestReservedExternalIPs(t *testing.T) {
	store := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	balanced := having("alice", "balanced", "", 80)
	balanced.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.6"}}
	for _, s := range []*corev1.Service{
		having("alice", "web", "203.0.113.7 2001:db8::7", 80, 443), having("bob", "zeros", "203.000.113.005", 80), having("mallory", "own", "203.0.113.9", 80), balanced,
	} {
		testenv.NoError(t, store.Add(s))
	}
	p := pluginWith(t, store)
	datagrams := wanting("mallory", "old", "203.0.113.7", 443)
	datagrams.Spec.Ports[0].Protocol = core.ProtocolUDP
	const refused = "a Service of another namespace has the external IP "
	for what, c := range map[string]struct {
		now, old    *core.Service
		subresource string
		want        string
	}{
		"a free address":              {now: wanting("mallory", "old", "203.0.113.1", 80)},
		"no external IP":              {now: wanting("mallory", "old", "", 80)},
		"a pod's":                     {now: wanting("mallory", "old", "10.42.3.1", 80), want: "lies in 10.42.0.0/16, a network of pods or of Services"},
		"a cluster IP":                {now: wanting("mallory", "old", "fd43::1", 80), want: "lies in fd43::/112"},
		"a server's":                  {now: wanting("mallory", "old", "192.0.2.6", 80), want: "192.0.2.6 is the address of an API server"},
		"a node's":                    {now: wanting("mallory", "old", "192.0.2.7", 80), want: "192.0.2.7 is the address of a node"},
		"a node's, from before":       {now: wanting("mallory", "old", "192.0.2.7", 80, 81), old: wanting("mallory", "old", "192.0.2.7", 80)},
		"a load balancer's":           {now: wanting("mallory", "old", "203.0.113.6", 8443), want: "203.0.113.6 is the load balancer address of a Service of another namespace"},
		"its own load balancer's":     {now: wanting("alice", "more", "203.0.113.6", 8443)},
		"another port":                {now: wanting("mallory", "old", "203.0.113.7", 8443)},
		"another protocol":            {now: datagrams},
		"its namespace's":             {now: wanting("alice", "more", "203.0.113.7", 443)},
		"created":                     {now: wanting("mallory", "old", "203.0.113.1 203.0.113.7", 22, 443), want: refused + "203.0.113.7 with port 443/TCP:"},
		"IPv6":                        {now: wanting("mallory", "old", "2001:db8:0::7", 443), want: refused + "2001:db8::7 with port 443/TCP:"},
		"in other words":              {now: wanting("mallory", "old", "203.0.113.5", 80), want: refused},
		"an address is added":         {now: wanting("mallory", "old", "203.0.113.1 203.0.113.7", 443), old: wanting("mallory", "old", "203.0.113.1", 443), want: refused},
		"a port is added":             {now: wanting("mallory", "old", "203.0.113.7", 22, 443), old: wanting("mallory", "old", "203.0.113.7", 22), want: refused},
		"a port becomes another":      {now: wanting("mallory", "old", "203.0.113.7", 443), old: wanting("mallory", "old", "203.0.113.7", 80), want: refused},
		"it had that before":          {now: wanting("mallory", "old", "203.0.113.7", 443), old: wanting("mallory", "old", "203.0.113.7", 443)},
		"it gives up some of that":    {now: wanting("mallory", "old", "203.0.113.7", 443), old: wanting("mallory", "old", "203.0.113.7 203.0.113.1", 80, 443)},
		"another address beside that": {now: wanting("mallory", "old", "203.0.113.7 203.0.113.1", 443), old: wanting("mallory", "old", "203.0.113.7", 443)},
		"a status":                    {now: wanting("mallory", "old", "203.0.113.7", 443), old: wanting("mallory", "old", "", 443), subresource: "status"},
	} {
		err := p.Validate(t.Context(), writeOf(asAdmin, c.now, c.old, c.subresource), nil)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

// TestRandomExternalIPs: whichever Services are written, one after the other, a write is refused if it takes a pair of
// address and port that a Service of another namespace has, however the address is written, and never for what the
// Service had before, or for what its own namespace has.
func TestRandomExternalIPs(t *testing.T) {
	seed := testenv.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	spellings := [][]string{{"203.0.113.7", "::ffff:203.0.113.7", "203.000.113.007"}, {"203.0.113.8"}, {"2001:db8::7", "2001:DB8:0:0::7"}}
	protocols := []core.Protocol{core.ProtocolTCP, core.ProtocolUDP, core.ProtocolSCTP}
	type pair struct {
		address int
		port    string
	}
	type service struct {
		*core.Service
		pairs map[pair]bool
	}
	store := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	p := pluginWith(t, store)
	have := map[string]service{} // by namespace/name
	random := func(namespace, name string) service {
		s := service{wanting(namespace, name, ""), map[pair]bool{}}
		var addresses []int
		for i, texts := range spellings {
			if rnd.IntN(3) == 0 {
				addresses = append(addresses, i)
				s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, texts[rnd.IntN(len(texts))]) //nolint:staticcheck // as in wanting
			}
		}
		for range rnd.IntN(4) {
			port := core.ServicePort{Port: 1 + rnd.Int32N(3), Protocol: protocols[rnd.IntN(len(protocols))]}
			s.Spec.Ports = append(s.Spec.Ports, port)
			for _, a := range addresses {
				s.pairs[pair{a, fmt.Sprint(port.Protocol, port.Port)}] = true
			}
		}
		return s
	}
	allowed, refused := 0, 0
	for range 20_000 {
		namespace, name := string('a'+rune(rnd.IntN(3))), string('x'+rune(rnd.IntN(2)))
		key := namespace + "/" + name
		old, exists := have[key]
		if exists && rnd.IntN(4) == 0 {
			delete(have, key)
			testenv.NoError(t, store.Delete(&corev1.Service{ObjectMeta: old.ObjectMeta}))
			continue
		}
		now := random(namespace, name)
		taken := false
		for other, s := range have {
			for at := range now.pairs {
				taken = taken || !strings.HasPrefix(other, namespace) && s.pairs[at] && !old.pairs[at]
			}
		}
		if err := p.Validate(t.Context(), writeOf(asAdmin, now.Service, old.Service, ""), nil); (err != nil) != taken {
			t.Fatalf("seed %d: %s wants %v with %v: %v, and taken is %v; there are %v", seed, key, now.Spec.ExternalIPs, now.Spec.Ports, err, taken, store.List()) //nolint:staticcheck // as in wanting
		}
		if taken {
			refused++
			continue
		}
		allowed++
		have[key] = now
		stored := &corev1.Service{}
		testenv.NoError(t, legacyscheme.Scheme.Convert(now.Service, stored, nil))
		testenv.NoError(t, store.Update(stored))
	}
	testenv.False(t, allowed < 1000 || refused < 1000, "%d writes were allowed, %d refused", allowed, refused)
}

// TestExternalIPsOfTheAPI: the plugin is on, asks RBAC, and knows of Services that come and change. Who has the role
// edit may give no external IP, and may with the role for that.
func TestExternalIPsOfTheAPI(t *testing.T) {
	f := newFixture(t)
	config := f.start(t, f.options(t)).admin()
	admin := client(t, config)
	as := rest.CopyConfig(config)
	as.Impersonate = rest.ImpersonationConfig{UserName: "jane"}
	jane := client(t, as).CoreV1().Services("mallory")
	testenv.NoError(t, testenv.Err(admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "mallory"}}, metav1.CreateOptions{})))
	bind(t, admin, "system:aggregate-to-edit") // which a controller puts into edit, and there is none here
	create := func(s *corev1.Service) *corev1.Service {
		s.Spec.Ports[0].Protocol = corev1.ProtocolTCP
		return testenv.Must(admin.CoreV1().Services(s.Namespace).Create(t.Context(), s, metav1.CreateOptions{}))(t)
	}
	old, young := create(having("mallory", "old", "", 443)), create(having("default", "young", "203.0.113.7", 443))
	old.Spec.ExternalIPs = young.Spec.ExternalIPs
	refused := func(what, want string) {
		t.Helper()
		eventually(t, what, func() error { // as soon as the server's informers know it
			_, err := jane.Update(t.Context(), old, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
			if err != nil && strings.Contains(err.Error(), want) {
				return nil
			}
			return fmt.Errorf("she may: %w", err)
		})
	}
	refused("she may give none", `"jane" may not give a Service the external IP 203.0.113.7`)
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: clusterconfig.ExternalIPsRole}, Rules: []rbacv1.PolicyRule{{
		Verbs: []string{clusterconfig.ExternalIPsVerb}, APIGroups: []string{clusterconfig.ExternalIPsGroup}, Resources: []string{clusterconfig.ExternalIPsResource}}}}
	testenv.Must(admin.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}))(t)
	bind(t, admin, clusterconfig.ExternalIPsRole)
	refused("she may not have another namespace's", "a Service of another namespace has the external IP 203.0.113.7 with port 443/TCP")
	young.Spec.ExternalIPs = nil
	testenv.Must(admin.CoreV1().Services("default").Update(t.Context(), young, metav1.UpdateOptions{}))(t)
	eventually(t, "she may have what was given up", func() error {
		_, err := jane.Update(t.Context(), old, metav1.UpdateOptions{})
		return err
	})
}

// bind gives jane a ClusterRole in the namespace mallory.
func bind(t *testing.T, admin kubernetes.Interface, role string) {
	t.Helper()
	_, err := admin.RbacV1().RoleBindings("mallory").Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "jane-"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "jane"}},
	}, metav1.CreateOptions{})
	testenv.NoError(t, err)
}
