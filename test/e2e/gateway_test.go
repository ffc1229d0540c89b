//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const webGateway = `---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: web}, spec: {gatewayClassName: coracle,
  listeners: [{name: http, port: 80, protocol: HTTP}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: web}, spec: {parentRefs: [{name: web}], hostnames: [web.example],
  rules: [{backendRefs: [{name: web, port: 80}]}]}}
`

// forgedGateway is a Service of a tenant who would have nodes listen.
const forgedGateway = `---
{apiVersion: v1, kind: Service, metadata: {name: gateway-forged, labels: {coracle.dev/gateway: forged}, annotations: {coracle.dev/gateway-ports: "80=10060"}},
  spec: {ports: [{port: 80}]}}
`

// TestGatewayServesThroughRestarts serves a pod by a Gateway and an HTTPRoute, through a restart of coracle, and closes
// the listener with the Gateway's end.
func TestGatewayServesThroughRestarts(t *testing.T) {
	m := harness.NewMachine(t)
	s := m.NewServer()
	s.AddBoxImage()
	s.StartNode()
	k := s.Namespace(t, "shop")
	k.Await(soon, "gatewayclass/coracle", `{.status.conditions[?(@.type=="Accepted")].status}`, "True")
	k.Apply(forgedGateway)
	k.Apply(pod("web", "[testbox, serve]", "ports: [{containerPort: 8080}]", ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=180s")
	if out, err := m.Run("pgrep", "-x", "coracle-ingress"); err == nil {
		t.Errorf("the proxy runs though there is no Gateway but a Service that says so: %s", out)
	}

	k.Apply(webGateway)
	k.Await(soon, "gateway/web", `{.status.conditions[?(@.type=="Programmed")].status}`, "True")
	k.Await(soon, "gateway/web", `{.status.addresses[0].value}`, harness.NodeIP)
	k.Await(soon, "httproute/web", `{.status.parents[0].conditions[?(@.type=="Accepted")].status}`, "True")
	site := []string{"-H", "Host: web.example", "http://" + harness.NodeIP + "/"}
	asks := func(want string, args ...string) func() error {
		return func() error {
			return harness.Exactly(want)(curl(k, args...))
		}
	}
	harness.Eventually(t, soon, "the Gateway answers", asks("web\n200", site...))
	if out, err := curl(k, "--max-time", "2", "http://"+harness.NodeIP+":10060/"); err == nil {
		t.Errorf("the site's own port answers from outside, past the Service's source ranges: %s", out)
	}
	proxy := proxyPid(t, s)
	s.Kill()
	s.StartNode()
	harness.Eventually(t, soon, "the node has its proxy again", func() error {
		return s.LogSays("the proxy of the previous run keeps running")
	})
	testenv.Check(t, asks("web\n200", site...)(), "after coracle was killed and started again")
	testenv.Equal(t, proxyPid(t, s), proxy, "the proxy was process %s and is", proxy)

	k.Kubectl("delete", "gateway", "web")
	harness.Eventually(t, soon, "nothing listens any more", func() error {
		out, err := curl(k, site...)
		if text := fmt.Sprint(out, err); err == nil || !strings.Contains(text, "curl: (7)") { // "failed to connect"
			return fmt.Errorf("%s", text)
		}
		return nil
	})
	k.Becomes(soon, "", "get", "services,endpointslices", "-l", "coracle.dev/gateway=web", "-o", "name")
	harness.Eventually(t, soon, "and the proxy", func() error {
		if out, err := m.Run("pgrep", "-x", "coracle-ingress"); err == nil {
			return fmt.Errorf("it runs: %s", out)
		}
		return nil
	})
}
