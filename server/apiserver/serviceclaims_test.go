// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
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
