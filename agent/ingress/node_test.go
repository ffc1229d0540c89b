// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func endpointSlice(name, port string, number int32, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &port, Port: &number}}, Endpoints: endpoints,
	}
}

func endpoint(address string, ready, serving bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: ptr.To(!ready)}}
}

func TestEndpointsOfABackend(t *testing.T) {
	web := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{
		{Name: "http", Port: 80}, {Name: "admin", Port: 81}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
	}}}
	for _, c := range []struct {
		name, port string
		slices     []*discoveryv1.EndpointSlice
		want       string
	}{
		{"by the port's name", "http", []*discoveryv1.EndpointSlice{endpointSlice("a", "http", 8080, endpoint("10.0.0.2", true, true), endpoint("10.0.0.1", true, true))},
			"10.0.0.1:8080 10.0.0.2:8080"},
		{"by its number", "81", []*discoveryv1.EndpointSlice{endpointSlice("a", "http", 8080, endpoint("10.0.0.1", true, true)),
			endpointSlice("b", "admin", 9090, endpoint("10.0.0.1", true, true))}, "10.0.0.1:9090"},
		{"in several slices, each once", "80", []*discoveryv1.EndpointSlice{endpointSlice("a", "http", 8080, endpoint("10.0.0.1", true, true)),
			endpointSlice("b", "http", 8080, endpoint("10.0.0.1", true, true), endpoint("fd00::1", true, true))}, "10.0.0.1:8080 [fd00::1]:8080"},
		{"those that end serve where there are no others", "80", []*discoveryv1.EndpointSlice{endpointSlice("a", "http", 8080, endpoint("10.0.0.1", false, true), endpoint("10.0.0.2", false, false))},
			"10.0.0.1:8080"},
		{"and not where there are", "80", []*discoveryv1.EndpointSlice{endpointSlice("a", "http", 8080, endpoint("10.0.0.1", false, true), endpoint("10.0.0.2", true, true))},
			"10.0.0.2:8080"},
		{"a port that the Service lacks", "82", []*discoveryv1.EndpointSlice{endpointSlice("a", "http", 8080, endpoint("10.0.0.1", true, true))}, ""},
		{"a port of UDP", "53", []*discoveryv1.EndpointSlice{endpointSlice("a", "dns", 53, endpoint("10.0.0.1", true, true))}, ""},
		{"a name for an address", "80", []*discoveryv1.EndpointSlice{endpointSlice("a", "http", 8080, endpoint("metadata.example", true, true))}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
			services, all := factory.Core().V1().Services(), factory.Discovery().V1().EndpointSlices()
			testenv.NoError(t, services.Informer().GetStore().Add(web))
			for _, s := range c.slices {
				testenv.NoError(t, all.Informer().GetStore().Add(s))
			}
			n := Node{o: Options{Nodes: factory.Core().V1().Nodes(), Services: services}}
			if got := strings.Join(n.endpoints(table.Backend{Namespace: "shop", Service: "web", Port: c.port}, c.slices,
				n.proxyNode()), " "); got != c.want {
				t.Errorf("the endpoints are %s, want %s", got, c.want)
			}
		})
	}
}

// TestExternalNameHasNoEndpoints: a Service of the type ExternalName leads nowhere, whatever slices say.
func TestExternalNameHasNoEndpoints(t *testing.T) {
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	services := factory.Core().V1().Services()
	web := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeExternalName, ExternalName: "web.example", Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
	}}
	testenv.NoError(t, services.Informer().GetStore().Add(web))
	n := Node{o: Options{Nodes: factory.Core().V1().Nodes(), Services: services}}
	slice := endpointSlice("a", "http", 8080, endpoint("10.0.0.1", true, true))
	if got := n.endpoints(table.Backend{Namespace: "shop", Service: "web", Port: "80"},
		[]*discoveryv1.EndpointSlice{slice}, n.proxyNode()); len(got) != 0 {
		t.Errorf("the endpoints are %s", got)
	}
}

// unreachable is what a test says of other nodes.
type unreachable struct{ down map[string]bool }

func (u unreachable) Nodes() map[string]bool   { return u.down }
func (u unreachable) Changed() <-chan struct{} { return nil }

// TestPlaceOfTheNode: the node's zone is that of its label, and nodes that it does not reach are left out.
func TestPlaceOfTheNode(t *testing.T) {
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	nodes := factory.Core().V1().Nodes()
	for name, zone := range map[string]string{"a": "z1", "b": "z2"} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}}}
		testenv.NoError(t, nodes.Informer().GetStore().Add(n))
	}
	n := Node{o: Options{NodeName: "a", Nodes: nodes, Unreachable: unreachable{map[string]bool{"b": true}}}}
	if p := n.proxyNode(); p.Name != "a" || p.Zone != "z1" || !p.Unreachable["b"] {
		t.Errorf("it is %+v", p)
	}
}

// TestSettingsOfTheTable: what the server says of proxies stays when the node adds the cluster's networks.
func TestSettingsOfTheTable(t *testing.T) {
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	n := Node{o: Options{
		Nodes: factory.Core().V1().Nodes(), Services: factory.Core().V1().Services(), EndpointSlices: factory.Discovery().V1().EndpointSlices(),
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		Logger:   slog.New(slog.DiscardHandler),
	}}
	in := table.Sections{}
	testenv.NoError(t, in.Put(table.KindSettings, table.Settings{TrustedProxies: []string{"192.0.2.0/24"}, ProxyProtocol: true}))
	var got table.Settings
	testenv.NoError(t, json.Unmarshal(n.complete(in)[table.KindSettings], &got))
	if !got.ProxyProtocol || !slices.Equal(got.TrustedProxies, []string{"192.0.2.0/24"}) || !slices.Equal(got.ClusterNetworks, []string{"10.42.0.0/16"}) {
		t.Errorf("the settings are %+v", got)
	}
}

// TestStreamCountsFromItsCommit: what a stream says counts from its commit on, an end is followed by another stream,
// and a new stream does not begin with what the one before left.
func TestStreamCountsFromItsCommit(t *testing.T) {
	text := func(changes ...table.Change) io.ReadCloser {
		var out bytes.Buffer
		for _, c := range changes {
			testenv.NoError(t, json.NewEncoder(&out).Encode(c))
		}
		return io.NopCloser(&out)
	}
	put := func(key string) table.Change { return table.Change{Key: key, Value: json.RawMessage(`{}`)} }
	commit := table.Change{Commit: true}
	streams := []io.ReadCloser{
		text(put("a"), commit, put("b"), table.Change{Key: "a"}, commit, put("half")),
		nil,
		text(put("c"), commit),
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		tables := make(chan table.Sections)
		var following sync.WaitGroup
		following.Go(func() {
			follow(ctx, func(context.Context) (io.ReadCloser, error) {
				if len(streams) == 0 {
					return nil, errors.New("no more")
				}
				next := streams[0]
				streams = streams[1:]
				if next == nil {
					return nil, errors.New("connection refused")
				}
				return next, nil
			}, tables, slog.New(slog.DiscardHandler))
		})
		var got []string
		for range 3 {
			got = append(got, strings.Join(slices.Sorted(maps.Keys(<-tables)), " "))
		}
		cancel()
		following.Wait()
		testenv.EqualSlices(t, got, []string{"a", "b", "c"}, "the tables were")
	})
}

func TestServicePortNameIsResolved(t *testing.T) {
	unnamed := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	if name, ok := portName(unnamed, "80"); !ok || name != "" {
		t.Errorf("the only port, without a name, is %q %v", name, ok)
	}
	numbered := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "81", Port: 80}, {Name: "b", Port: 81}}}}
	if name, _ := portName(numbered, "81"); name != "81" && name != "b" {
		t.Errorf("it is %q", name)
	}
	if name, ok := portName(numbered, ""); !ok || name != "81" {
		t.Errorf("the first port is %q %v", name, ok)
	}
}
