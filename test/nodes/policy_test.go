//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// What a pod meets at an address.
const (
	open   = "open"
	denied = "refused" // by an answer; silence would be neither
)

// policyPod is a pod of the scenario: its namespace, its name, and the number of the node that it is on.
type policyPod struct {
	namespace, name string
	node            int
}

var (
	web        = policyPod{"shop", "web", 1}
	near       = policyPod{"shop", "near", 1}
	friend     = policyPod{"shop", "friend", 0}
	leaver     = policyPod{"shop", "leaver", 0}
	foreignPod = policyPod{"shop", "foreign", 0}
	outsider   = policyPod{"other", "outsider", 0}
	target     = policyPod{"other", "target", 1}
	late       = policyPod{"other", "late", 0}
)

// yaml is a pod that serves, after a shell script.
func (p policyPod) yaml(m *mesh, role, annotations, before string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: %[2]s, labels: {app: %[1]s, role: %[3]s}, annotations: {%[4]s}}
spec:
  nodeName: %[5]s
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
  - {name: box, image: "%[6]s", imagePullPolicy: Never, command: [sh, -c, '%[7]s exec testbox serve'], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}
---`, p.name, p.namespace, role, annotations, m.nodes[p.node].NodeName(), harness.BoxImage, before)
}

func (p policyPod) exec(m *mesh, text string) (string, error) {
	out, err := m.nodes[0].TryKubectl("exec", "-n", p.namespace, p.name, "--", "sh", "-c", text)
	return strings.TrimSpace(out), err
}

// tries is a shell script that prints what it meets at each URL at the first attempt, on a line of its own.
func tries(urls ...string) string {
	return fmt.Sprintf(`for u in %s; do if e=$(testbox get $u 0 2>&1); then echo %s; else case "$e" in *refused*) echo %s;; *) echo "$e";; esac; fi; done`,
		strings.Join(urls, " "), open, denied)
}

// meets waits until a pod meets at each URL what it should.
func (p policyPod) meets(m *mesh, want string, urls ...string) {
	m.Helper()
	all := strings.TrimSpace(strings.Repeat(want+"\n", len(urls)))
	harness.Eventually(m, patient, fmt.Sprintf("%s meets %v: %s", p.name, urls, want), func() error {
		return harness.Exactly(all)(p.exec(m, tries(urls...)))
	})
}

// urls are those of a pod's two addresses.
func (p policyPod) urls(m *mesh) []string {
	m.Helper()
	ips := strings.Fields(m.nodes[0].Kubectl("get", "pod", "-n", p.namespace, p.name, "-o", "jsonpath={.status.podIPs[*].ip}"))
	testenv.Require(m, len(ips) == 2, "pod %s has the addresses %v", p.name, ips)
	return []string{"http://" + host(ips[0]) + ":8080/", "http://" + host(ips[1]) + ":8080/"}
}

// ingressPolicies: what allows comes first, so that there is no moment in which a connection that lasts is forbidden.
const ingressPolicies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {role: client}}, namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}]
    ports: [{port: 8080}]
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: nobody, namespace: shop}, spec: {podSelector: {}, policyTypes: [Ingress]}}
`

const egressPolicy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: names, namespace: other}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
    ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
`

// TestNetworkPolicy: pods of two nodes meet as policies say, of both families, from a pod's first packet on, while a
// connection lasts, and while coracle does not run. A pod's limits of bandwidth are the kernel's.
func TestNetworkPolicy(t *testing.T) {
	m := newMesh(t, 2, "vxlan", "eth0")
	s, agent := m.nodes[0], m.nodes[1]
	for _, n := range m.nodes {
		harness.Eventually(m, patient, "the node is ready", func() error { return s.NodeReady(n) })
	}
	for _, namespace := range []string{"shop", "other"} {
		s.Creates("namespace", namespace)
	}
	var manifest strings.Builder
	manifest.WriteString(web.yaml(m, "none", `kubernetes.io/ingress-bandwidth: 10M, kubernetes.io/egress-bandwidth: 20M`, ""))
	for _, p := range []policyPod{near, friend, leaver, outsider} {
		manifest.WriteString(p.yaml(m, "client", "", ""))
	}
	for _, p := range []policyPod{foreignPod, target} {
		manifest.WriteString(p.yaml(m, "none", "", ""))
	}
	manifest.WriteString(`
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}`)
	harness.Eventually(m, patient, "pods are made", func() error { // once their service accounts are there
		return harness.Succeeds(s.In(t).TryApply(manifest.String()))
	})
	s.Kubectl("wait", "-n", "shop", "--for=condition=Ready", "pod", "--all", "--timeout=180s")
	s.Kubectl("wait", "-n", "other", "--for=condition=Ready", "pod", "--all", "--timeout=180s")
	m.limited("10Mbit", "20Mbit")

	toWeb := append(web.urls(m), "http://web.shop/")
	toTarget := target.urls(m)
	for _, p := range []policyPod{near, friend, leaver, foreignPod, outsider} {
		p.meets(m, open, toWeb...)
	}
	outsider.meets(m, open, toTarget...)
	m.hold(leaver, web)

	s.Apply(ingressPolicies)
	foreignPod.meets(m, denied, toWeb...)
	outsider.meets(m, denied, toWeb...)
	for _, p := range []policyPod{near, friend} {
		p.meets(m, open, toWeb...)
	}
	friend.meets(m, denied, near.urls(m)...)
	near.meets(m, denied, friend.urls(m)...)
	m.stillHeld(leaver)
	s.Kubectl("label", "pod", "-n", "shop", "leaver", "role=none", "--overwrite")
	leaver.meets(m, denied, toWeb...)
	harness.Eventually(m, patient, "the connection ends whose permission is gone", func() error {
		_, err := leaver.exec(m, "cat /tmp/ended")
		return err
	})

	s.Apply(egressPolicy)
	outsider.meets(m, denied, toTarget...)
	harness.Eventually(m, patient, "names are resolved", func() error {
		_, err := outsider.exec(m, "testbox lookup web.shop && testbox lookup kubernetes.default")
		return err
	})
	outsider.meets(m, denied, toTarget...)
	m.firstPacket(toTarget)

	testenv.Check(t, agent.Stop(), "the agent's end")
	foreignPod.meets(m, denied, toWeb...)
	friend.meets(m, open, web.urls(m)...) // the Service may have learnt that the node is not ready
	agent.Start()
	near.meets(m, open, toWeb...) // its node has to be there for that
	foreignPod.meets(m, denied, toWeb...)
	s.Kubectl("label", "pod", "-n", "shop", "foreign", "role=client", "--overwrite")
	foreignPod.meets(m, open, toWeb...)
	s.Kubectl("wait", "-n", "shop", "--for=condition=Ready", "pod/web", "--timeout=180s")
	m.limited("10Mbit", "20Mbit")

	s.Kubectl("delete", "networkpolicies", "-n", "shop", "--all")
	s.Kubectl("delete", "networkpolicies", "-n", "other", "--all")
	for _, p := range []policyPod{leaver, outsider, late} {
		p.meets(m, open, toWeb...)
	}
	late.meets(m, open, toTarget...)
	for i, n := range m.nodes {
		harness.Eventually(m, patient, fmt.Sprintf("node %d has no rules", i), func() error {
			out, err := n.NFT("list", "tables")
			if err == nil && strings.Contains(out, "coracle-policy") {
				err = fmt.Errorf("there are %s", out)
			}
			return err
		})
	}
}

// limited: the kernel of the node of web has both limits, and no others.
func (m *mesh) limited(ingress, egress string) {
	m.Helper()
	harness.Eventually(m, patient, "a pod's limits are in the kernel", func() error {
		out, err := m.nodes[web.node].Run("/usr/sbin/tc", "qdisc", "show")
		var in, eg bool
		for line := range strings.Lines(out) {
			shaped := strings.Contains(line, "qdisc tbf")
			in = in || shaped && !strings.Contains(line, " dev ifb") && strings.Contains(line, " rate "+ingress+" ")
			eg = eg || shaped && strings.Contains(line, " dev ifb") && strings.Contains(line, " rate "+egress+" ")
		}
		if err == nil && (!in || !eg || strings.Count(out, "qdisc tbf") != 2) {
			err = fmt.Errorf("%s in and %s out are there as\n%s", ingress, egress, out)
		}
		return err
	})
}

// hold opens a connection that lasts: a request whose headers have no end. The pod has /tmp/ended when it does.
func (m *mesh) hold(from, to policyPod) {
	m.Helper()
	at := strings.TrimSuffix(strings.TrimPrefix(to.urls(m)[0], "http://"), ":8080/")
	text := fmt.Sprintf(`cat > /tmp/hold <<'END'
(printf 'GET / HTTP/1.1\r\nHost: box\r\n'; while sleep 0.5; do printf 'X-More: yes\r\n' || exit; echo >> /tmp/sent; done) | nc %s 8080
echo $? > /tmp/ended
END
sh /tmp/hold > /tmp/heard 2>&1 &`, at)
	if out, err := from.exec(m, text); err != nil {
		m.Fatalf("%v\n%s", err, out)
	}
	m.stillHeld(from)
}

// stillHeld: some more was sent by a connection that lasts.
func (m *mesh) stillHeld(from policyPod) {
	m.Helper()
	sent := func() (int, error) {
		out, err := from.exec(m, "if [ -e /tmp/ended ]; then echo -1; else wc -l < /tmp/sent; fi")
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(out)
	}
	begin := -1
	harness.Eventually(m, patient, "the connection lasts", func() error {
		n, err := sent()
		switch {
		case err != nil:
			return err
		case n < 0:
			output, _ := from.exec(m, "cat /tmp/ended /tmp/heard; wc -l /tmp/sent")
			m.Fatalf("the connection has ended, after %d headers at first: %s", begin, output)
		case begin < 0:
			begin = n
		}
		if n < begin+4 {
			return fmt.Errorf("%d headers were sent, %d before", n, begin)
		}
		return nil
	})
}

// firstPacket: a pod that is made while nothing is allowed finds all closed, from its start on, and is ready all the
// same.
func (m *mesh) firstPacket(closed []string) {
	m.Helper()
	const times = 10
	m.nodes[0].Apply(late.yaml(m, "client", "", tries(slices.Repeat(closed, times)...)+";"))
	m.nodes[0].Kubectl("wait", "-n", late.namespace, "--for=condition=Ready", "pod/"+late.name, "--timeout=180s")
	var out string
	var met []string // one that was tried and failed for another reason shows nothing
	harness.Eventually(m, patient, "the log has what a new pod met before it was ready", func() (err error) {
		out, err = m.nodes[0].TryKubectl("logs", "-n", late.namespace, late.name)
		if met = strings.Split(out, "\n"); err == nil && len(met) <= times*len(closed) {
			err = fmt.Errorf("%d lines of %d attempts:\n%s", len(met)-1, times*len(closed), out)
		}
		return err
	})
	testenv.False(m, slices.Contains(met, open) || !slices.Contains(met, denied), "a new pod meets\n%s", out)
}
