//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// documented is the example of a page of docs that begins with a line.
func documented(t *testing.T, name, first string) string {
	t.Helper()
	const indent = "    "
	page := testenv.Must(os.ReadFile("../../docs/" + name))(t)
	_, after, ok := strings.Cut(string(page), "\n"+indent+first+"\n")
	testenv.Require(t, ok, "the page has no example that begins with %q", first)
	var example strings.Builder
	fmt.Fprintln(&example, first)
	for line := range strings.Lines(after) {
		rest, ok := strings.CutPrefix(line, indent)
		if !ok {
			break
		}
		example.WriteString(rest)
	}
	return example.String()
}

// startFRR does what the package does when it is installed, and starts its programs with a configuration.
const startFRR = `grep -q ^frr: /etc/passwd || {
  echo frr:x:970: >> /etc/group; echo frrvty:x:971:frr >> /etc/group
  echo frr:x:970:970::/nonexistent:/usr/sbin/nologin >> /etc/passwd
}
mkdir -p /run/frr /var/log/frr
chown -R frr:frr /run/frr /etc/frr /var/log/frr
for d in zebra bgpd; do /usr/lib/frr/$d -d >/var/log/frr/$d.out 2>&1 || { cat /var/log/frr/$d.out >&2; exit 1; }; done
vtysh -b`

// routing starts FRR on the machine with that index, or on the router behind the last one.
func (m *mesh) routing(i int, config string) {
	m.Helper()
	m.foreign(i, "cat > /etc/frr/frr.conf <<'CONFIG'\n"+config+"CONFIG\n"+startFRR)
}

// TestForeignRouter: a router learns from FRR on the nodes where pods and the addresses of load balancers are, as the
// page says, and forgets it when a node dies.
func TestForeignRouter(t *testing.T) {
	root := foreignRoot(t)
	m := newMesh(t, 2, "vxlan", "eth0", root)
	m.workload()
	m.nodes[0].Kubectl("label", "pods", "box-0", "box-1", "tier=web")
	m.nodes[0].Apply(`{apiVersion: coracle.dev/v1alpha1, kind: AddressPool, metadata: {name: bgp}, spec: {addresses: [198.51.100.0/24]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, selector: {tier: web}, ports: [{port: 80, targetPort: 8080}]}}
`)
	router := &harness.Server{Machine: m.site.NewMachine()}
	all := *m // with the router behind the nodes
	all.nodes = append(append([]*harness.Server{}, m.nodes...), router)
	const last = 2
	for i := range all.nodes {
		all.addForeign(i, root)
	}
	all.routing(last, strings.ReplaceAll(documented(t, "loadbalancer.md", "router bgp 64513"), "192.168.1.", "10.77.0."))
	var pods []string
	speaker := strings.ReplaceAll(documented(t, "loadbalancer.md", "router bgp 64512"), "192.168.1.1", router.IP)
	for i, n := range m.nodes {
		pods = append(pods, m.nodes[0].Kubectl("get", "node", n.NodeName(), "-o", "jsonpath={.spec.podCIDR}"))
		all.routing(i, strings.ReplaceAll(speaker, "10.42.3.0/24", pods[i]))
	}
	const pool = "198.51.100.0/24"
	all.routes(pool, m.nodes[0].IP, m.nodes[1].IP)
	all.routes(pods[0], m.nodes[0].IP)
	all.routes(pods[1], m.nodes[1].IP)

	var address string
	harness.Eventually(t, patient, "the Service has an address of the pool", func() (err error) {
		address, err = m.nodes[0].TryKubectl("get", "service", "web", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
		if err == nil && !strings.HasPrefix(address, "198.51.100.") {
			err = fmt.Errorf("it has %q", address)
		}
		return err
	})
	visits := []visit{{"http://" + address + "/", ""}, {"http://" + m.pods[0][0] + ":8080/", "box-0"}, {"http://" + m.pods[1][0] + ":8080/peer", router.IP}}
	all.judge("the router", all.run(last, "sh", "-c", script(harness.Box(t), visits)), visits)

	// With another password there is no session, and what it brought is gone.
	password := func(word string) string {
		return fmt.Sprintf("vtysh -c 'configure terminal' -c 'router bgp 64512' -c 'neighbor %s password %s'", router.IP, word)
	}
	all.foreign(0, password("wrong"))
	all.routes(pods[0])
	all.routes(pool, m.nodes[1].IP)
	all.foreign(0, password("s3cret"))
	all.routes(pods[0], m.nodes[0].IP)
	all.routes(pool, m.nodes[0].IP, m.nodes[1].IP)

	m.nodes[1].PowerOff()
	began := time.Now()
	all.routes(pods[1])
	all.routes(pool, m.nodes[0].IP)
	t.Logf("the router had forgotten the dead node after %v", time.Since(began).Round(100*time.Millisecond))
	again := []visit{{"http://" + address + "/", "box-0"}}
	harness.Eventually(t, patient, "the pod that is left answers", func() error {
		out, err := router.Run(harness.Box(t), "get", again[0].url, "3")
		if err == nil && strings.TrimSpace(out) != again[0].want {
			err = fmt.Errorf("%q answered", out)
		}
		return err
	})
}

// routes waits until the last machine's kernel has routes to a network by BGP through just these gateways.
func (m *mesh) routes(network string, want ...string) {
	m.Helper()
	router := m.nodes[len(m.nodes)-1]
	harness.Eventually(m, patient, fmt.Sprintf("the router reaches %s through %v", network, want), func() error {
		out, err := router.Run("ip", "route", "show", network, "proto", "bgp")
		if err != nil {
			return err
		}
		if strings.Count(out, " via ") != len(want) {
			return fmt.Errorf("it has %q", out)
		}
		for _, gateway := range want {
			if !strings.Contains(out, " via "+gateway+" ") {
				return fmt.Errorf("it has %q", out)
			}
		}
		return nil
	})
}
