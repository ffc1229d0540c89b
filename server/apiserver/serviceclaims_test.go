// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	core "k8s.io/kubernetes/pkg/apis/core"
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

// TestServiceClaims: nobody takes by an older Service what a younger one of another namespace is served at an external IP.
func TestServiceClaims(t *testing.T) {
	store := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	for _, s := range []*corev1.Service{
		having("alice", "web", "203.0.113.7 2001:db8::7", 80, 443), having("bob", "zeros", "203.000.113.005", 80), having("mallory", "own", "203.0.113.9", 80),
	} {
		if err := store.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	p := newServiceClaims()
	p.services = corelisters.NewServiceLister(store)
	if err := p.ValidateInitialization(); err != nil {
		t.Error(err)
	}
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
		kind, resource := core.Kind("Service").WithVersion("v1"), core.Resource("services").WithVersion("v1")
		a := admission.NewAttributesRecord(c.now, nil, kind, c.now.Namespace, c.now.Name, resource, c.subresource, admission.Create, &metav1.CreateOptions{}, false, asAdmin)
		if c.old != nil {
			a = admission.NewAttributesRecord(c.now, c.old, kind, c.now.Namespace, c.now.Name, resource, c.subresource, admission.Update, &metav1.UpdateOptions{}, false, asAdmin)
		}
		err := p.Validate(t.Context(), a, nil)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

// TestRandomServiceClaims: whichever Services are written, one after the other, a write is refused if it takes a pair of address and port that a Service of another namespace
// has, however the address is written, and never for what the Service had before, or for what its own namespace has.
func TestRandomServiceClaims(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
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
	p := newServiceClaims()
	p.services = corelisters.NewServiceLister(store)
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
			if err := store.Delete(&corev1.Service{ObjectMeta: old.ObjectMeta}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		now := random(namespace, name)
		taken := false
		for other, s := range have {
			for at := range now.pairs {
				taken = taken || !strings.HasPrefix(other, namespace) && s.pairs[at] && !old.pairs[at]
			}
		}
		kind, resource := core.Kind("Service").WithVersion("v1"), core.Resource("services").WithVersion("v1")
		a := admission.NewAttributesRecord(now.Service, nil, kind, namespace, name, resource, "", admission.Create, &metav1.CreateOptions{}, false, asAdmin)
		if exists {
			a = admission.NewAttributesRecord(now.Service, old.Service, kind, namespace, name, resource, "", admission.Update, &metav1.UpdateOptions{}, false, asAdmin)
		}
		if err := p.Validate(t.Context(), a, nil); (err != nil) != taken {
			t.Fatalf("seed %d: %s wants %v with %v: %v, and taken is %v; there are %v", seed, key, now.Spec.ExternalIPs, now.Spec.Ports, err, taken, store.List()) //nolint:staticcheck // as in wanting
		}
		if taken {
			refused++
			continue
		}
		allowed++
		have[key] = now
		stored := &corev1.Service{}
		if err := legacyscheme.Scheme.Convert(now.Service, stored, nil); err != nil {
			t.Fatal(err)
		}
		if err := store.Update(stored); err != nil {
			t.Fatal(err)
		}
	}
	if allowed < 1000 || refused < 1000 {
		t.Errorf("%d writes were allowed, %d refused", allowed, refused)
	}
}

// TestServiceClaimsOfTheAPI: the plugin is on, and knows of Services that come and change.
func TestServiceClaimsOfTheAPI(t *testing.T) {
	f := newFixture(t)
	api := clientOf(t, f.start(t, f.options(t)).admin()).CoreV1()
	if _, err := api.Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "mallory"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	create := func(s *corev1.Service) *corev1.Service {
		s.Spec.Ports[0].Protocol = corev1.ProtocolTCP
		made, err := api.Services(s.Namespace).Create(t.Context(), s, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	old, young := create(having("mallory", "old", "", 443)), create(having("default", "young", "203.0.113.7", 443))
	old.Spec.ExternalIPs = young.Spec.ExternalIPs
	eventually(t, "the old one may not have it", func() error { // as soon as the plugin's informer knows it
		_, err := api.Services("mallory").Update(t.Context(), old, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil && strings.Contains(err.Error(), "a Service of another namespace has the external IP 203.0.113.7 with port 443/TCP") {
			return nil
		}
		return fmt.Errorf("it may: %v", err)
	})
	young.Spec.ExternalIPs = nil
	if _, err := api.Services("default").Update(t.Context(), young, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it may have what was given up", func() error {
		_, err := api.Services("mallory").Update(t.Context(), old, metav1.UpdateOptions{})
		return err
	})
}
