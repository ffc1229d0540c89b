// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const gatewayObjects = `
metadata: {name: g, namespace: ns, generation: 1}
spec:
  gatewayClassName: coracle
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: web, port: 443, protocol: HTTPS, hostname: "*.web.example", tls: {certificateRefs: [{name: cert}]}}
  - {name: pass, port: 443, protocol: TLS, hostname: pass.example, tls: {mode: Passthrough}}
  - {name: end, port: 443, protocol: TLS, hostname: end.example, tls: {mode: Terminate, certificateRefs: [{name: cert}]}}
---
metadata: {name: web, namespace: ns, generation: 1}
spec:
  parentRefs: [{name: g}]
  hostnames: [a.web.example]
  rules:
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, scheme: https}}]
  - matches: [{path: {type: PathPrefix, value: /api}, headers: [{name: version, value: "2"}]}]
    filters:
    - {type: URLRewrite, urlRewrite: {hostname: two.internal, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: route}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-answer, value: route}]}}
    backendRefs: [{name: two, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /api}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: Exact, value: /broken}}]
    backendRefs: [{name: absent, port: 80}]
  - matches: [{path: {type: Exact, value: /secure}}]
    backendRefs: [{name: secure, port: 443}]
---
metadata: {name: pass, namespace: ns, generation: 1}
spec: {parentRefs: [{name: g, sectionName: pass}], rules: [{backendRefs: [{name: tls, port: 443}]}]}
---
metadata: {name: end, namespace: ns, generation: 1}
spec: {parentRefs: [{name: g, sectionName: end}], rules: [{backendRefs: [{name: plain, port: 7}]}]}
---
metadata: {name: secure, namespace: ns, generation: 1}
spec: {targetRefs: [{group: "", kind: Service, name: secure}], validation: {hostname: secure.internal, caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}]}}
`

// serveGateway serves gatewayObjects: the port 80 at http, the port 443 at https.
func serveGateway(t *testing.T) *fixture {
	t.Helper()
	ca := newAuthority(t, "ca")
	cert := ca.issue("a.web.example", "b.web.example", "end.example")
	var s gateway.State
	documents := strings.Split(gatewayObjects, "\n---\n")
	read := func(i int, to any) {
		testenv.NoError(t, yaml.UnmarshalStrict([]byte(documents[i]), to))
	}
	g, web, pass, end, policy := &gatewayv1.Gateway{}, &gatewayv1.HTTPRoute{}, &gatewayv1.TLSRoute{}, &gatewayv1.TLSRoute{}, &gatewayv1.BackendTLSPolicy{}
	for i, to := range []any{g, web, pass, end, policy} {
		read(i, to)
	}
	s.Classes = []*gatewayv1.GatewayClass{{ObjectMeta: metav1.ObjectMeta{Name: gateway.ClassName}, Spec: gatewayv1.GatewayClassSpec{ControllerName: gateway.ControllerName}}}
	s.Gateways, s.HTTPRoutes, s.TLSRoutes, s.Policies = []*gatewayv1.Gateway{g}, []*gatewayv1.HTTPRoute{web}, []*gatewayv1.TLSRoute{pass, end}, []*gatewayv1.BackendTLSPolicy{policy}
	s.Namespaces = []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}}
	s.Service = func(name types.NamespacedName) *corev1.Service {
		if name.Name == "absent" {
			return nil
		}
		out := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}
		for _, port := range []int32{80, 443, 7} {
			out.Spec.Ports = append(out.Spec.Ports, corev1.ServicePort{Port: port})
		}
		return out
	}
	s.Secret = func(types.NamespacedName) *corev1.Secret {
		return &corev1.Secret{Type: corev1.SecretTypeTLS, Data: map[string][]byte{corev1.TLSCertKey: []byte(cert.Chain), corev1.TLSPrivateKeyKey: []byte(cert.Key)}}
	}
	s.ConfigMap = func(types.NamespacedName) *corev1.ConfigMap {
		return &corev1.ConfigMap{Data: map[string]string{"ca.crt": ca.section().Certificates}}
	}
	s.GatewayServices = []*corev1.Service{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: gateway.ServiceName("g")}}}
	s.NodePorts = map[string]uint16{gateway.Site("ns", "g", 80): 10060, gateway.Site("ns", "g", 443): 10061}
	r := testenv.Must(gateway.Desired(s))(t)
	return gatewaySockets(t, r.Sections, map[string]string{
		"one": backendServer(t, showing("one")), "two": backendServer(t, showing("two")), "tls": tlsEcho(t, nil), "plain": accepting(t, echoEnd),
		"secure": secureBackend(t, &tls.Config{Certificates: []tls.Certificate{pair(t, ca.issue("secure.internal"))}}),
	})
}

// gatewaySockets serves the two ports of the Gateway as the sites of a fixture.
func gatewaySockets(t *testing.T, sections table.Sections, endpoints map[string]string) *fixture {
	t.Helper()
	backends := testenv.Must(sections.Backends())(t)
	var changes []table.Change
	for key, value := range sections {
		changes = append(changes, table.Change{Key: key, Value: json.RawMessage(value)})
	}
	for key, b := range backends {
		changes = append(changes, section(t, key, table.Endpoints{Addresses: []string{endpoints[b.Service]}}))
	}
	return newFixtureAt(t, Options{}, [2]string{table.GatewaySite("ns", "g", 80), table.GatewaySite("ns", "g", 443)}, changes...)
}

// TestGatewayFromObjectsToAnswers compiles objects of the Gateway API and asks the proxy.
func TestGatewayFromObjectsToAnswers(t *testing.T) {
	f := serveGateway(t)
	const host = "http://a.web.example"
	for _, e := range []exchanged{
		{url: host + "/old/x?q=1", status: 302, answer: map[string]string{"Location": "https://a.web.example/new/x?q=1"}},
		{url: host + "/api/x", body: "one /api/x", answer: map[string]string{"X-Answer": ""}},
		{url: host + "/api/x?q=1", headers: map[string]string{"Version": "2", "X-Show": "Host,X-Set"}, body: "two /x?q=1 Host=two.internal X-Set=route",
			answer: map[string]string{"X-Answer": "route"}},
		{url: host + "/broken", status: 500},
		{url: host + "/secure", body: "nobody to secure.internal by HTTP/1"},
		{url: host + "/none", status: 404},
		{url: "http://b.web.example/api", status: 404},
	} {
		e.check(t, f)
	}
	res, err := f.asks(t, "h2", "a.web.example", nil).Get("https://a.web.example/api/x")
	testenv.False(t, err != nil || body(t, res) != "one /api/x", "over TLS: %v", err)
	if res, err = f.asks(t, "h2", "a.web.example", nil).Get("https://end.example/"); err != nil || res.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("a request by another listener's connection: %v, %v", res, err)
	}
	for name, want := range map[string]string{"pass.example": "backend", "end.example": "a.web.example"} {
		conn := testenv.Must(tls.Dial("tcp", f.https, &tls.Config{ServerName: name, InsecureSkipVerify: true}))(t)
		testenv.Equal(t, conn.ConnectionState().PeerCertificates[0].Subject.CommonName, want, "the certificate of %s is that of", name)
		testenv.Equal(t, testenv.Must(converse(t, conn, "hello"))(t), "helloend", "%s answers", name)
		_ = conn.Close()
	}
	if conn, err := tls.Dial("tcp", f.https, &tls.Config{ServerName: "other.example", InsecureSkipVerify: true}); err == nil {
		_ = conn.Close()
		t.Error("a handshake for a name of no listener is taken")
	}
}
