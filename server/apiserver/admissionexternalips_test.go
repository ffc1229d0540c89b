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

// pluginWith makes a plugin that knows these Services, which are in the store, a node and a server.
func pluginWith(t *testing.T, services ...*corev1.Service) (p *serviceExternalIPs, store cache.Indexer) {
	t.Helper()
	store, nodes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}), cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	for _, s := range services {
		testenv.NoError(t, store.Add(s))
	}
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}}
	testenv.NoError(t, nodes.Add(n))
	p = newServiceExternalIPs(&AdmissionOptions{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd43::/112")},
		Servers:  func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.6")} },
	})
	p.services, p.nodes = corelisters.NewServiceLister(store), corelisters.NewNodeLister(nodes)
	p.SetAuthorizer(rule{})
	testenv.Check(t, p.ValidateInitialization())
	return p, store
}

// writeOf is a user's write of a Service; old is nil where it creates it.
func writeOf(who user.Info, now, old *core.Service, subresource string) admission.Attributes {
	kind, resource := core.Kind("Service").WithVersion("v1"), core.Resource("services").WithVersion("v1")
	if old == nil {
		return admission.NewAttributesRecord(now, nil, kind, now.Namespace, now.Name, resource, subresource, admission.Create, &metav1.CreateOptions{}, false, who)
	}
	return admission.NewAttributesRecord(now, old, kind, now.Namespace, now.Name, resource, subresource, admission.Update, &metav1.UpdateOptions{}, false, who)
}

// TestForeignExternalIPsAreRefused: jane may write the Services of the namespace mallory, and use one external IP
// there; admin may use each. Jane must not give a Service another one that it has not got already, and neither of them
// one of the cluster's own addresses, or what a Service of another namespace has. Rows without a refusal are allowed.
func TestForeignExternalIPsAreRefused(t *testing.T) {
	balanced := having("alice", "balanced", "", 80)
	balanced.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.6"}}
	p, _ := pluginWith(t, having("alice", "web", "203.0.113.7 2001:db8::7", 80, 443), having("bob", "zeros", "203.000.113.005", 80),
		having("mallory", "own", "203.0.113.9", 80), balanced)
	jane := &user.DefaultInfo{Name: "jane"}
	web := func(ips string, ports ...int32) *core.Service { return wanting("mallory", "web", ips, ports...) }
	datagrams := web("203.0.113.7", 443)
	datagrams.Spec.Ports[0].Protocol = core.ProtocolUDP
	forbidden := func(ip string) string { return `"jane" may not give a Service the external IP ` + ip + "," }
	const taken = "a Service of another namespace has the external IP "
	for _, c := range []struct {
		name        string
		who         user.Info
		now, old    *core.Service // what is written, and what was there before
		subresource string
		refused     string
	}{
		{name: "none", who: jane, now: web("", 80)},
		{name: "one that she may use", who: jane, now: web("203.0.113.1", 80)},
		{name: "that one in other words", who: jane, now: web("203.000.113.001", 80)},
		{name: "that one in another namespace", who: jane, now: wanting("alice", "web", "203.0.113.1", 80), refused: forbidden("203.0.113.1")},
		{name: "another one beside it", who: jane, now: web("203.0.113.1 203.0.113.9", 80), refused: forbidden("203.0.113.9")},
		{name: "one of IPv6", who: jane, now: web("2001:db8::9", 80), refused: forbidden("2001:db8::9")},
		{name: "one without a port for now", who: jane, now: web("203.0.113.9"), refused: forbidden("203.0.113.9")},
		{name: "one is added", who: jane, now: web("203.0.113.9", 80), old: web("", 80), refused: forbidden("203.0.113.9")},
		{name: "what the Service has", who: jane, now: web("203.0.113.9", 80), old: web("203.0.113.9", 80)},
		{name: "a port at what it has", who: jane, now: web("203.0.113.9", 80, 443), old: web("203.0.113.9", 80)},
		{name: "one beside what it has", who: jane, now: web("203.0.113.9 203.0.113.8", 80), old: web("203.0.113.9", 80),
			refused: forbidden("203.0.113.8")},
		{name: "one of two that it has", who: jane, now: web("203.0.113.9", 80), old: web("203.0.113.9 203.0.113.8", 80)},
		{name: "what it has in other words", who: jane, now: web("203.000.113.009", 80), old: web("203.0.113.9", 80)},
		{name: "another Service's by a copy", who: jane, now: wanting("mallory", "copy", "203.0.113.9", 80), refused: forbidden("203.0.113.9")},

		{name: "an administrator's", who: asAdmin, now: web("203.0.113.1", 80)},
		{name: "what a Service of its namespace has", who: asAdmin, now: web("203.0.113.9", 80)},
		{name: "a pod's", who: asAdmin, now: web("10.42.3.1", 80), refused: "lies in 10.42.0.0/16, a network of pods or of Services"},
		{name: "a cluster IP", who: asAdmin, now: web("fd43::1", 80), refused: "lies in fd43::/112"},
		{name: "a server's", who: asAdmin, now: web("192.0.2.6", 80), refused: "192.0.2.6 is the address of an API server"},
		{name: "a node's", who: asAdmin, now: web("192.0.2.7", 80), refused: "192.0.2.7 is the address of a node"},
		{name: "a node's, from before", who: asAdmin, now: web("192.0.2.7", 80, 81), old: web("192.0.2.7", 80)},
		{name: "a load balancer's", who: asAdmin, now: web("203.0.113.6", 8443),
			refused: "203.0.113.6 is the load balancer address of a Service of another namespace"},
		{name: "its own load balancer's", who: asAdmin, now: wanting("alice", "more", "203.0.113.6", 8443)},
		{name: "another port of one that is taken", who: asAdmin, now: web("203.0.113.7", 8443)},
		{name: "another protocol of it", who: asAdmin, now: datagrams},
		{name: "a port that its namespace has", who: asAdmin, now: wanting("alice", "more", "203.0.113.7", 443)},
		{name: "a port that is taken", who: asAdmin, now: web("203.0.113.1 203.0.113.7", 22, 443),
			refused: taken + "203.0.113.7 with port 443/TCP:"},
		{name: "a port that is taken, of IPv6", who: asAdmin, now: web("2001:db8:0::7", 443), refused: taken + "2001:db8::7 with port 443/TCP:"},
		{name: "a port that is taken, in other words", who: asAdmin, now: web("203.0.113.5", 80), refused: taken},
		{name: "an address is added", who: asAdmin, now: web("203.0.113.1 203.0.113.7", 443), old: web("203.0.113.1", 443), refused: taken},
		{name: "a port is added", who: asAdmin, now: web("203.0.113.7", 22, 443), old: web("203.0.113.7", 22), refused: taken},
		{name: "a port becomes another", who: asAdmin, now: web("203.0.113.7", 443), old: web("203.0.113.7", 80), refused: taken},
		{name: "what is taken, from before", who: asAdmin, now: web("203.0.113.7", 443), old: web("203.0.113.7", 443)},
		{name: "some of that is given up", who: asAdmin, now: web("203.0.113.7", 443), old: web("203.0.113.7 203.0.113.1", 80, 443)},
		{name: "another address beside that", who: asAdmin, now: web("203.0.113.7 203.0.113.1", 443), old: web("203.0.113.7", 443)},
		{name: "a status", who: asAdmin, now: web("203.0.113.7", 443), old: web("", 443), subresource: "status"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := p.Validate(t.Context(), writeOf(c.who, c.now, c.old, c.subresource), nil)
			if c.refused == "" {
				testenv.Check(t, err)
				return
			}
			testenv.WantError(t, err, c.refused)
			if c.who == jane {
				testenv.WantError(t, err, fmt.Sprintf(`kubectl create rolebinding external-ips -n %s --clusterrole=%s --user="jane"`, c.now.Namespace, clusterconfig.ExternalIPsRole))
			}
		})
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
	p, store := pluginWith(t)
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
