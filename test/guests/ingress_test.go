//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

// proxyPort is where nodes' ingress proxies listen.
const proxyPort = "10054"

// testIngress: with IPVS, which rewrites a packet's destination at another place than nftables, an Ingress answers at
// the cluster address of its Service and at node ports, and the proxy's own port is open to no client outside the
// cluster.
func testIngress(t *testing.T, l *lab) {
	pods := []string{l.pod(1), l.pod(2)}
	l.kube.Apply(`{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: web}, spec: {defaultBackend: {service: {name: web, port: {name: http}}}}}`)
	l.await(t, "both nodes serve", func() error {
		return harness.Exactly("true true")(l.kube.Try("-n", "kube-system", "get", "endpointslices", "-l", "kubernetes.io/service-name=ingress", "-o", "jsonpath={.items[*].endpoints[*].conditions.ready}"))
	})
	at := func(path string) string {
		return l.kube.Kubectl("-n", "kube-system", "get", "service", "ingress", "-o", "jsonpath="+path)
	}
	ip, port := at("{.spec.clusterIP}"), at(`{.spec.ports[?(@.name=="http")].nodePort}`)
	for i, n := range l.nodes {
		for _, from := range []struct {
			name string
			asks func() (string, error)
		}{
			{n.Name, func() (string, error) { return n.try(harness.Box(t) + " get http://" + ip) }},
			{"outside at a node port of " + n.Name, func() (string, error) {
				return l.server.Run(harness.Box(t), "get", "http://"+net.JoinHostPort(n.IP, port))
			}},
			{"a pod of " + n.Name, func() (string, error) {
				return l.kube.Try("exec", fmt.Sprintf("deployment/web-%d", i+1), "--", "testbox", "get", "http://"+ip+"/", "60")
			}},
		} {
			l.await(t, "the Ingress, asked from "+from.name, func() error {
				out, err := from.asks()
				if err == nil && !slices.Contains(pods, strings.TrimSpace(out)) {
					err = fmt.Errorf("%q answers, which is none of %q", out, pods)
				}
				return err
			})
		}
		if out, err := l.server.Run("curl", "-sS", "--max-time", "5", "http://"+net.JoinHostPort(n.IP, proxyPort)+"/"); err == nil {
			t.Errorf("the proxy's port of %s answers from outside: %s", n.Name, out)
		}
	}
	l.kube.Kubectl("delete", "ingress", "web")
}
