//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// ingressPath is a Service's first address, conditionPath the reason of what is said about it.
const (
	ingressPath   = "{.status.loadBalancer.ingress[*].ip}"
	conditionPath = `{.status.conditions[?(@.type=="coracle.dev/LoadBalancer")].reason}`
)

func balancer(name, app string, port int, more string) string {
	return fmt.Sprintf(`---
{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {type: LoadBalancer, allocateLoadBalancerNodePorts: false, selector: {app: %s}, ports: [{port: %d, targetPort: 8080}]%s}}
`, name, app, port, more)
}

// poolFirst and poolLast are the pool of TestLoadBalancerPool.
const poolFirst, poolLast = "10.77.0.200", "10.77.0.201"

// holderOf is the node that answers for an address, as the cluster has it.
func holderOf(s *harness.Server, address string) (string, error) {
	out, err := s.TryKubectl("get", "configmap", "-n", "kube-system", loadbalancer.ConfigMap, "-o", "json")
	if err != nil {
		return "", err
	}
	var m corev1.ConfigMap
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		return "", err
	}
	record, err := loadbalancer.Read(m.Data)
	if err == nil && record[netip.MustParseAddr(address)].Node == "" {
		err = fmt.Errorf("no machine answers for %s: %v", address, record)
	}
	return record[netip.MustParseAddr(address)].Node, err
}

// poolSite is a dual-stack cluster of a server without a node, with that pool, and two agents.
func poolSite(t *testing.T) (*harness.Site, *harness.Server, map[string]*harness.Server) {
	t.Helper()
	site := harness.NewSite(t)
	both.outside(t, site)
	start := func(s *harness.Server, n int) {
		if out, err := s.Run("ip", "addr", "add", address6(n)+"/64", "dev", "eth0", "nodad"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		s.Args = append(s.Args, "--node-ip", address6(n))
		s.Start()
	}
	s := site.NewMachine().NewServer(append(both.networks(), "--disable-agent", "--load-balancer-pool", poolFirst+"-"+poolLast)...)
	start(s, 0)
	s.WaitAPI()
	agents := map[string]*harness.Server{}
	for i := range 2 {
		a := site.NewMachine().NewAgent(s)
		a.AddBoxImage()
		start(a, 1+i)
		agents[a.NodeName()] = a
	}
	return site, s, agents
}

// outside6 is where clients outside of the machines are, beside harness.OutsideIP.
const outside6 = "fd77::1"

// addressPool: a pool that is an object has addresses of both families for a Service that asks for it, which keeps to
// its node's pods and sees who asks. What is no address is refused, and a Service whose pool goes has none.
func addressPool(k *harness.Kube, site *harness.Site, node string) {
	const v4, v6 = "10.77.0.210", "fd77::210"
	object := func(addresses string) string {
		return fmt.Sprintf("\n---\n{apiVersion: coracle.dev/v1alpha1, kind: AddressPool, metadata: {name: named}, spec: {autoAssign: false, addresses: [%s]}}\n", addresses)
	}
	if out, err := k.TryApply(object("10.77.0.300")); err == nil || !strings.Contains(err.Error(), "is neither an address, nor a range") {
		k.T.Errorf("an address that is none: %v, %s", err, out)
	}
	k.Apply(fmt.Sprintf(`
{apiVersion: v1, kind: Pod, metadata: {name: lone, labels: {app: lone}}, spec: {nodeName: %s, terminationGracePeriodSeconds: 0, containers: [`+harness.BoxYAML+`, command: [testbox, serve]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: lone, annotations: {coracle.dev/load-balancer-pool: named}}, spec: {type: LoadBalancer, selector: {app: lone}, ports: [{port: 443, targetPort: 8080}],
  ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], externalTrafficPolicy: Local, allocateLoadBalancerNodePorts: false}}`, node))
	k.Await(harness.Soon, "service/lone", conditionPath, "NoPool")
	k.Apply(object(v4 + ", " + `"` + v6 + `"`))
	k.Await(harness.Soon, "service/lone", ingressPath, v4+" "+v6)
	for address, client := range map[string]string{v4: harness.OutsideIP, v6: outside6} {
		harness.Eventually(k.T, harness.Soon, address+" answers", func() error {
			got, err := fetch(site, address, "/peer")
			if host, _, split := net.SplitHostPort(strings.TrimSpace(got)); err == nil && (split != nil || host != client) {
				err = fmt.Errorf("the pod sees %q, want %s", got, client)
			}
			return err
		})
		if holder, err := holderOf(k.Server, address); err != nil || holder != node {
			k.T.Errorf("%s answers for %s, whose pod is on %s: %v", holder, address, node, err)
		}
	}
	k.Await(harness.Soon, "addresspool/named", `{.status.used}/{.status.total} {.status.conditions[?(@.type=="Ready")].status}`, "2/2 True")
	k.T.Logf("\n%s", k.Kubectl("get", "lbpool"))
	k.Kubectl("delete", "addresspool", "named")
	k.Await(harness.Soon, "service/lone", conditionPath, "NoPool")
	k.Await(harness.Soon, "service/lone", ingressPath, "")
	k.Kubectl("delete", "service/lone", "pod/lone", "--wait=false")
}

// routedPool: a pool outside of the nodes' network is given out, too, and a router may lead to any node.
func routedPool(k *harness.Kube, site *harness.Site, agents map[string]*harness.Server) {
	const address = "198.51.100.7"
	k.Apply(`
{apiVersion: coracle.dev/v1alpha1, kind: AddressPool, metadata: {name: routed}, spec: {autoAssign: false, addresses: [` + address + `]}}
---
{apiVersion: v1, kind: Service, metadata: {name: routed, annotations: {coracle.dev/load-balancer-pool: routed}}, spec: {type: LoadBalancer, selector: {app: d}, ports: [{port: 443, targetPort: 8080}]}}`)
	k.Await(harness.Soon, "service/routed", ingressPath, address)
	k.Await(harness.Soon, "addresspool/routed", `{.status.conditions[?(@.type=="Ready")].reason}`, "OutOfReach")
	for name, a := range agents {
		route := site.Command(context.Background(), "ip", "route", "replace", address+"/32", "via", a.IP)
		if out, err := route.CombinedOutput(); err != nil {
			k.T.Fatalf("%v\n%s", err, out)
		}
		harness.Eventually(k.T, harness.Soon, "the Service answers through "+name, func() error { return asks(site, address) })
	}
	k.Kubectl("delete", "service/routed", "addresspool/routed")
}

// TestLoadBalancerPool: two Services have one port at two addresses of a pool, which answer on the network. One node at
// a time answers for each, whatever happens to it.
func TestLoadBalancerPool(t *testing.T) {
	harness.ByHand(t)
	site, s, agents := poolSite(t)
	for _, a := range agents {
		harness.Eventually(t, harness.Soon, "the nodes are ready", func() error { return s.NodeReady(a) })
	}
	k := s.In(t)
	k.Apply(spreadService)
	harness.Eventually(t, harness.Soon, "the pods are ready", func() error { return endpoints(s, 2) })
	k.Apply(balancer("one", "d", 443, "") + balancer("two", "d", 443, ""))
	k.Await(harness.Soon, "service/one", ingressPath, poolFirst)
	k.Await(harness.Soon, "service/two", ingressPath, poolLast)
	k.Apply(balancer("three", "d", 443, ""))
	k.Await(harness.Soon, "service/three", conditionPath, "PoolUsedUp")

	for name := range agents {
		addressPool(k, site, name)
		break
	}
	routedPool(k, site, agents)
	w := watchAnswers(t, site, poolFirst)
	for _, a := range []string{poolFirst, poolLast} {
		harness.Eventually(t, harness.Soon, a+" answers", func() error { return asks(site, a) })
	}
	first, err := holderOf(s, poolFirst)
	second, err2 := holderOf(s, poolLast)
	testenv.False(t, err != nil || err2 != nil, "%v %v", err, err2)
	t.Logf("holders: %s, %s", first, second)

	for _, fault := range []struct {
		name     string
		do, undo func(*harness.Server)
	}{
		{"killed", (*harness.Server).Kill, (*harness.Server).Start},
		{"paused", (*harness.Server).Pause, (*harness.Server).Resume},
		{"cut off", func(a *harness.Server) { site.CutOff(a.Machine) }, func(*harness.Server) { site.Heal() }},
	} {
		var victim *harness.Server
		harness.Eventually(t, harness.Soon, "a machine answers for the address", func() error {
			name, err := holderOf(s, poolFirst)
			if err != nil {
				return err
			}
			victim = agents[name]
			if runs, _, _ := w.state(); len(runs) == 0 || runs[len(runs)-1] != victim.Number {
				return fmt.Errorf("%s has not begun", name)
			}
			return nil
		})
		began := time.Now()
		fault.do(victim)
		harness.Eventually(t, harness.Longer, fault.name+": another node answers", func() error {
			if runs, _, _ := w.state(); runs[len(runs)-1] == victim.Number {
				return fmt.Errorf("still machine %d", victim.Number)
			}
			return nil
		})
		t.Logf("%s: another node answers for the address after %v", fault.name, time.Since(began).Round(10*time.Millisecond))
		harness.Eventually(t, harness.Longer, fault.name+": the Service answers there", func() error { return asks(site, poolFirst) })
		t.Logf("%s: the Service answers after %v", fault.name, time.Since(began).Round(10*time.Millisecond))
		fault.undo(victim)
		harness.Eventually(t, harness.Longer, "the node is ready again", func() error { return isReady(s, victim, "True") })
	}
	w.oneAtATime(t, []*harness.Server{s})
}

// asks fetches a page at an address of the pool from outside.
func asks(site *harness.Site, address string) error {
	_, err := fetch(site, address, "/")
	return err
}

// fetch opens a connection to an address from outside and returns the page there.
func fetch(site *harness.Site, address, path string) (page string, err error) {
	err = site.Do(func() error {
		dialer := net.Dialer{Timeout: 2 * time.Second}
		raw, err := dialer.Dial("tcp", net.JoinHostPort(address, "443")) // on this thread, and so in the site's network
		if err != nil {
			return err
		}
		defer raw.Close()
		_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := fmt.Fprintf(raw, "GET %s HTTP/1.0\r\n\r\n", path); err != nil {
			return err
		}
		answer, err := io.ReadAll(raw)
		if err == nil && !strings.Contains(string(answer), " 200 ") {
			err = fmt.Errorf("got %q", answer)
		}
		_, page, _ = strings.Cut(string(answer), "\r\n\r\n")
		return err
	})
	return page, err
}
