// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestHeaviestNamespacesAreLeftOut: those that take most, until the others fit, and always the same ones.
func TestHeaviestNamespacesAreLeftOut(t *testing.T) {
	charges := func(mib map[string]int64) map[string]table.Charge {
		out := map[string]table.Charge{}
		for namespace, n := range mib {
			out[namespace] = table.Charge{Namespace: namespace, Bytes: n << 20}
		}
		return out
	}
	for _, c := range []struct {
		of   map[string]int64
		want []string
	}{
		{nil, nil},
		{map[string]int64{"a": 60, "b": 60}, nil},
		{map[string]int64{"a": 60, "b": 61}, []string{"b"}},
		{map[string]int64{"a": 70, "b": 70}, []string{"a"}},
		{map[string]int64{"a": 90, "b": 80, "c": 60, "d": 10}, []string{"a", "b"}},
		{map[string]int64{"a": 300}, []string{"a"}},
	} {
		got := slices.Sorted(maps.Keys(heaviest(charges(c.of), 8<<20, 128<<20)))
		testenv.True(t, slices.Equal(got, c.want), "of %v are left out %v, want %v", c.of, got, c.want)
	}
}

// ingressOf is an Ingress with the given hosts, each with so many paths. From the eleventh on they are long.
func ingressOf(namespace string, paths int, hosts ...string) *networkingv1.Ingress {
	class := "coracle"
	ing := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web", UID: types.UID(namespace)},
		Spec: networkingv1.IngressSpec{IngressClassName: &class}}
	exact := networkingv1.PathTypeExact
	pad := strings.Repeat("x", 2000)
	for _, host := range hosts {
		var rule networkingv1.HTTPIngressRuleValue
		for i := range paths {
			rule.Paths = append(rule.Paths, networkingv1.HTTPIngressPath{Path: fmt.Sprintf("/%s-%04d", namespace, i) + pad[:min(i/10, 1)*len(pad)], PathType: &exact,
				Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "web",
					Port: networkingv1.ServiceBackendPort{Number: 80}}}})
		}
		ing.Spec.Rules = append(ing.Spec.Rules, networkingv1.IngressRule{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &rule}})
	}
	return ing
}

// tableOf is the table that a server makes.
func tableOf(t *testing.T, ingresses ...*networkingv1.Ingress) table.Sections {
	t.Helper()
	class := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "coracle"}, Spec: networkingv1.IngressClassSpec{Controller: compile.Controller}}
	r := testenv.Must(compile.Desired(compile.State{Ingresses: ingresses, Classes: []*networkingv1.IngressClass{class}}))(t)
	return r.Sections
}

// TestHeavyNamespaceIsClosedAlone: by the whole way from Ingresses to the proxy's answers. The hosts of the namespace
// that takes most answer 503, also at a host that it shares, others are served as before, an event is written once, and
// the namespace is served again when its Ingress is smaller.
func TestHeavyNamespaceIsClosedAlone(t *testing.T) {
	netns.RequireNFT(t)
	n := newTestNode(t)
	n.o.NodeIPs, n.o.Memory = []netip.Addr{netip.MustParseAddr(machineIP)}, 64<<20
	var mu sync.Mutex
	var events []table.Charge
	n.o.Event = func(_ context.Context, of table.Charge, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, of)
		return nil
	}
	light := ingressOf("ta", 1, "a.example", "shared.example")
	heavy := func(paths int) *networkingv1.Ingress {
		return ingressOf("tb", paths, "b.example", "shared.example", "")
	}
	n.table = tableOf(t, light, heavy(700))
	testenv.True(t, n.table[table.KindCharges+"/ingress"] != nil, "a large table has no charges")
	a := startAgent(n)
	url := fmt.Sprintf("http://%s:%d", machineIP, table.NodeHTTPPort)
	answer := func(host, path string) string {
		req := testenv.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil))(t)
		req.Host = host
		res, err := fresh().Do(req)
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		text := testenv.Must(io.ReadAll(res.Body))(t)
		return fmt.Sprint(res.StatusCode, " ", strings.Contains(string(text), "closed"))
	}
	// Without endpoints an open route answers 503, too, with another text.
	const closed, open, none = "503 true", "503 false", "404 false"
	check := func(when string, want map[string]string) {
		t.Helper()
		for at, answered := range want {
			host, path, _ := strings.Cut(at, "/")
			testenv.Equal(t, answer(host, "/"+path), answered, "%s %s answers", when, at)
		}
	}
	eventually(t, "the status names the namespace", func() bool {
		c := a.board.Components()[0]
		return c.State == status.Degraded && strings.Contains(c.Message, "the Ingresses and routes of tb (") &&
			strings.Contains(c.Message, "--ingress-memory, which is 64Mi")
	})
	check("while tb takes too much,", map[string]string{
		"a.example/ta-0000": open, "shared.example/ta-0000": open, "b.example/tb-0000": closed, "b.example/else": closed,
		"shared.example/tb-0007": closed, "shared.example/else": none, "other.example/tb-0007": closed, "other.example/else": none,
		"a.example/else": none,
	})
	a.send(tableOf(t, light, heavy(700), ingressOf("tc", 1, "c.example"))) // a change of others
	eventually(t, "tc is served", func() bool { return answer("c.example", "/tc-0000") == open })
	mu.Lock()
	said := slices.Clone(events)
	mu.Unlock()
	if len(said) != 1 || said[0].Object != (table.Object{APIVersion: "networking.k8s.io/v1", Kind: "Ingress", Name: "web", UID: "tb"}) {
		t.Errorf("the events are %+v", said)
	}
	a.send(tableOf(t, light, heavy(9)))
	eventually(t, "tb is served again", func() bool { return answer("b.example", "/tb-0000") == open })
	check("when tb takes little,", map[string]string{"shared.example/tb-0007": open, "other.example/tb-0007": open, "a.example/ta-0000": open})
	eventually(t, "the status is well", func() bool { return a.board.Components()[0].State == status.Running })
}

// TestSectionsOfLeftOutNamespacesGo: certificates, authorities and users that nothing names any more take no memory,
// and those stay that others name.
func TestSectionsOfLeftOutNamespacesGo(t *testing.T) {
	s := table.Sections{}
	users := table.UsersKey("tb", "u", "auth-file")
	closedCertificate, sharedCertificate := table.CertificateKey("tb", "own"), table.CertificateKey("tb", "granted")
	put := func(key string, value any) { testenv.NoError(t, s.Put(key, value)) }
	put(table.KindCharges+"/ingress", table.Charges{})
	for _, key := range []string{closedCertificate, sharedCertificate, table.DefaultCertificateKey} {
		put(key, table.Certificate{Chain: "x"})
	}
	put(users, table.Users{})
	put(table.HostKey("s", "b.example"), table.Host{Certificate: closedCertificate, AskClients: true, Routes: []table.Route{
		{Path: "/x", Kind: table.PathExact, Object: "Ingress/tb/web", Policy: &table.Policy{Basic: &table.Basic{Users: users}}},
	}})
	put(table.HostKey("s", "a.example"), table.Host{Certificate: sharedCertificate, Routes: []table.Route{{Path: "/", Kind: table.PathPrefix, Object: "HTTPRoute/ta/web"}}})
	put(table.HostKey("s", "stream.example"), table.Host{Stream: &table.Stream{Backends: []table.Backend{{Namespace: "tb", Service: "s"}}}})
	out := withoutNamespaces(s, map[string]table.Charge{"tb": {}})
	want := []string{sharedCertificate, table.DefaultCertificateKey, table.HostKey("s", "a.example"), table.HostKey("s", "b.example"), table.HostKey("s", "stream.example")}
	slices.Sort(want)
	got := slices.Sorted(maps.Keys(out))
	testenv.True(t, slices.Equal(got, want), "the sections are %v, want %v", got, want)
	var b, stream table.Host
	testenv.NoError(t, json.Unmarshal(out[table.HostKey("s", "b.example")], &b))
	testenv.NoError(t, json.Unmarshal(out[table.HostKey("s", "stream.example")], &stream))
	testenv.True(t, b.Final && b.Certificate == "" && !b.AskClients && len(b.Routes) == 1 && b.Routes[0].Path == "/" && b.Routes[0].Refused != "", "the host is %+v", b)
	testenv.True(t, stream.Stream != nil && len(stream.Stream.Backends) == 0, "the stream is %+v", stream.Stream)
	testenv.Equal(t, string(out[table.HostKey("s", "a.example")]), string(s[table.HostKey("s", "a.example")]), "another's host is")
}
