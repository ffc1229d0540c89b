//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// What coracle status says of the back end.
const (
	ipvsByAuto    = "ipvs: auto takes it where the kernel has what it needs"
	nftablesAsked = "nftables: --proxy-mode=nftables asks for it"
)

const (
	httpNodePort, echoNodePort = "30080", "30007"
	nft                        = "/run/disk/data/bin/current/nft"
	// ended is what machine.sh writes into the log.
	ended = "coracle has ended with "
)

// TestNodesServeByIPVSAndNFTables: two nodes whose kernel has IPVS beside nftables. Services are served by nftables, by
// IPVS, and on one of the two by nftables again; neither the change to IPVS nor a restart interrupts a connection; they
// reach pods on the other machine, follow a rolling update and the death of a node; and pods on both share a volume of
// an NFS server.
func TestNodesServeByIPVSAndNFTables(t *testing.T) {
	l := newLab(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *lab)
	}{
		{"one node, nftables", testNFTables},
		{"from nftables to IPVS", testToIPVS},
		{"a restart", testRestart},
		{"two nodes", testTwo},
		{"an Ingress", testIngress},
		{"readiness moves traffic", testReadiness},
		{"a rolling update", testRollingUpdate},
		{"NFS", testNFS},
		{"back to nftables", testBack},
		{"a node's death", testDeath},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			l.t = t
			l.kube.T = t
			step.run(t, l)
		}) {
			return
		}
	}
}

// testNFTables: a machine that could do either has nftables where it is asked for.
func testNFTables(t *testing.T, l *lab) {
	first := l.add("--proxy-mode=nftables")
	first.ready(t)
	first.serves(t, nftablesAsked)
	l.kube.Apply(web(1) + `
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: web}, ports: [
  {name: http, port: 80, targetPort: 8080, nodePort: ` + httpNodePort + `}, {name: echo, port: 7, targetPort: 7000, nodePort: ` + echoNodePort + `}]}}`)
	l.running(t, 1)
	first.has(t, "nftables")
	l.answers(t, l.pod(1))
}

// web is a Deployment of a pod on a machine, and a Service of its own for it. It ends with the mark between two
// documents.
func web(number int) string {
	return fmt.Sprintf(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: web-%[1]d}, spec: {replicas: 1, selector: {matchLabels: {box: "%[1]d"}}, template: {
  metadata: {labels: {app: web, box: "%[1]d"}}, spec: {nodeSelector: {kubernetes.io/hostname: guest-%[1]d}, terminationGracePeriodSeconds: 0, containers: [
    {name: http, image: "%[2]s", imagePullPolicy: Never, command: [testbox, serve],
      readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 3, timeoutSeconds: 20, failureThreshold: 1}},
    {name: echo, image: "%[2]s", imagePullPolicy: Never, command: [testbox, tcp, "7000"]}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: web-%[1]d}, spec: {selector: {box: "%[1]d"}, ports: [{port: 80, targetPort: 8080}]}}
---`, number, harness.BoxImage)
}

// running waits until the pod of a machine's Deployment is ready.
func (l *lab) running(t *testing.T, number int) {
	t.Helper()
	l.prints(t, "1", "get", "deployment", fmt.Sprintf("web-%d", number), "-o", "jsonpath={.status.readyReplicas}")
}

// pod is the name of the machine's pod, which it answers with.
func (l *lab) pod(number int) string {
	l.t.Helper()
	return l.kube.Kubectl("get", "pods", "-l", fmt.Sprintf("box=%d", number), "-o", "jsonpath={.items[0].metadata.name}")
}

func (l *lab) clusterIP(service string) string {
	l.t.Helper()
	return l.kube.Kubectl("get", "service", service, "-o", "jsonpath={.spec.clusterIP}")
}

// answers fails unless the Service web answers from everywhere: from each machine at its cluster address, from a pod on
// each, which asks the cluster's DNS for that address, and from outside at the node port of each. Each time one of
// those pods has to. The API's own Service, whose endpoint is a machine, has to answer pods too.
func (l *lab) answers(t *testing.T, pods ...string) {
	t.Helper()
	for i, n := range l.nodes {
		inPod := fmt.Sprintf("deployment/web-%d", i+1)
		ip := l.clusterIP("web")
		testenv.Equal(t, l.exec(t, inPod, "testbox", "lookup", "web.default.svc.cluster.local"), ip, "in a pod of %s the name is", n.Name)
		if got := l.exec(t, inPod, "testbox", "api", "/version"); !strings.HasPrefix(got, "200\n") {
			t.Errorf("the API answers a pod of %s at the Service kubernetes: %s", n.Name, got)
		}
		for from, got := range map[string]string{
			"a pod of " + n.Name:                    l.exec(t, inPod, "testbox", "get", "http://web/", "60"),
			n.Name:                                  n.asks(t, "web"),
			"outside at the node port of " + n.Name: l.asksNodePort(t, n),
		} {
			testenv.True(t, slices.Contains(pods, got), "asked from %s, %q answers, which is none of %q", from, got, pods)
		}
	}
}

// asks has the machine itself ask a Service's cluster address until there is an answer.
func (n *node) asks(t *testing.T, service string) (pod string) {
	t.Helper()
	ip := n.lab.clusterIP(service)
	harness.Eventually(t, patience, n.Name+" asks "+service, func() (err error) {
		pod, err = n.try(harness.Box(t) + " get http://" + ip)
		return err
	})
	return pod
}

func (l *lab) asksNodePort(t *testing.T, n *node) (pod string) {
	t.Helper()
	harness.Eventually(t, patience, "the node port of "+n.Name, func() (err error) {
		pod, err = l.server.Run(harness.Box(t), "get", "http://"+net.JoinHostPort(n.IP, httpNodePort))
		return err
	})
	return strings.TrimSpace(pod)
}

// has waits until the machine's kernel has what a back end makes, for the Service web too, and nothing of the other
// one's.
func (n *node) has(t *testing.T, backend string) {
	t.Helper()
	ip := n.lab.clusterIP("web")
	n.lab.await(t, fmt.Sprintf("the kernel of %s has %s and nothing else", n.Name, backend), func() error {
		tables, err := n.try(nft + " list tables")
		if err != nil {
			return err
		}
		device, _ := n.try("ip -o address show dev coracleipvs0") // fails where there is none
		servers, err := n.try("cat /proc/net/ip_vs")
		if err != nil {
			return err
		}
		for what, there := range map[string][2]bool{ // is it, and has it to be
			"the table ip kube-proxy":                  {strings.Contains(tables+"\n", "table ip kube-proxy\n"), backend == "nftables"},
			"the table ip coracle-ipvs":                {strings.Contains(tables+"\n", "table ip coracle-ipvs\n"), backend == "ipvs"},
			"the address on coracleipvs0":              {strings.Contains(device, " "+ip+"/"), backend == "ipvs"},
			"the device coracleipvs0":                  {!strings.Contains(device, "does not exist"), backend == "ipvs"},
			"the Service's virtual server":             {strings.Contains(servers, "TCP  "+hex(t, ip)+":0050 "), backend == "ipvs"},
			"a virtual server":                         {strings.Contains(servers, "\nTCP ") || strings.Contains(servers, "\nUDP "), backend == "ipvs"},
			"a real server, which a virtual one needs": {strings.Contains(servers, "Masq "), backend == "ipvs"},
		} {
			if there[0] != there[1] {
				return fmt.Errorf("%s is there: %v, want %v\n%s\n%s\n%s", what, there[0], there[1], tables, device, servers)
			}
		}
		return nil
	})
}

// hex is an IPv4 address as /proc/net/ip_vs has it.
func hex(t *testing.T, ip string) string {
	t.Helper()
	a := testenv.Must(netip.ParseAddr(ip))(t)
	return fmt.Sprintf("%08X", a.AsSlice())
}

// testToIPVS: what the other back end made goes when this one has begun; the pods stay, and what is connected goes on.
func testToIPVS(t *testing.T, l *lab) {
	first := l.nodes[0]
	pod := l.pod(1)
	echo := first.opens(t)
	echo("before the change")
	first.settings("--proxy-mode=auto")
	first.restart(t, ipvsByAuto)
	first.has(t, "ipvs")
	echo("with IPVS")
	testenv.Contains(t, first.log(), `connections="those that began with it go on`, "the log says what the change ends:")
	l.answers(t, pod)
}

// opens connects to the node port of the Service's echo from outside. What it returns says a word on that connection,
// which has to come back.
func (n *node) opens(t *testing.T) (echo func(word string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := testenv.Must(n.lab.server.Dial(ctx, "tcp", net.JoinHostPort(n.IP, echoNodePort)))(t)
	t.Cleanup(func() { c.Close() })
	return func(word string) {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(5 * time.Minute))
		back := make([]byte, len(word))
		testenv.NoError(t, testenv.Err(io.WriteString(c, word)), "the open connection, %s", word)
		if _, err := io.ReadFull(c, back); err != nil || string(back) != word {
			t.Fatalf("the open connection, %s: %q, %v", word, back, err)
		}
	}
}

// testRestart: in the same mode, the kernel keeps what it has while coracle is away, and has it afterwards; what is
// connected goes on all the time.
func testRestart(t *testing.T, l *lab) {
	first := l.nodes[0]
	echo := first.opens(t)
	echo("before the restart")
	before, pod, ends := first.rules(), l.pod(1), strings.Count(first.log(), ended)
	// On a busy machine a container's first start may have been given up after two minutes, which counts as a restart.
	const restarts = "jsonpath={.status.containerStatuses[*].restartCount} {.status.containerStatuses[*].containerID}"
	restarted := l.kube.Kubectl("get", "pod", pod, "-o", restarts)
	first.sh("kill $(cat /run/coracle.pid)")
	l.await(t, "coracle has ended", func() error { // and is started again, which takes it many seconds
		if strings.Count(first.log(), ended) == ends {
			return errors.New("not yet")
		}
		return nil
	})
	echo("while coracle is away")
	if got := first.rules(); got != before {
		t.Errorf("while coracle is away the kernel has\n%s\nand had\n%s", got, before)
	}
	first.serves(t, ipvsByAuto)
	first.ready(t)
	l.await(t, "Services are served once more", func() error {
		if n := strings.Count(first.log(), "Services are served"); n != 3 {
			return fmt.Errorf("%d starts say so, want 3", n)
		}
		return nil
	})
	echo("after the restart")
	// Where the start took longer than the node's lease, the server has called the node's pods not ready, and their
	// weight is 0 until they are again.
	l.await(t, "the kernel has what it had", func() error {
		if got := first.rules(); got != before {
			return fmt.Errorf("it has\n%s\nand had\n%s", got, before)
		}
		return nil
	})
	l.answers(t, pod)
	l.prints(t, restarted, "get", "pod", pod, "-o", restarts)
}

// rules are the virtual servers with their real ones, without counters, in the order of their text, and the rules
// beside them.
func (n *node) rules() string {
	n.lab.t.Helper()
	return n.sh(`awk '$1 == "->" {print server, $2, $3, $4; next} {server = $1 " " $2 " " $3; print server}' /proc/net/ip_vs | sort
` + nft + ` -s list table ip coracle-ipvs`)
}

// testTwo: each machine reaches a pod on the other one by a Service, through the tunnel.
func testTwo(t *testing.T, l *lab) {
	second := l.add()
	second.ready(t)
	second.serves(t, ipvsByAuto)
	l.kube.Apply(web(2))
	l.running(t, 2)
	pods := []string{l.pod(1), l.pod(2)}
	for i, n := range l.nodes {
		other := 2 - i
		service := fmt.Sprintf("web-%d", other)
		if got := n.asks(t, service); got != pods[other-1] {
			t.Errorf("%s asks %s, and %q answers, want %q", n.Name, service, got, pods[other-1])
		}
		if got := l.exec(t, fmt.Sprintf("deployment/web-%d", i+1), "testbox", "get", "http://"+service, "60"); got != pods[other-1] {
			t.Errorf("a pod on %s asks %s, and %q answers, want %q", n.Name, service, got, pods[other-1])
		}
		ip := l.kube.Kubectl("get", "pod", pods[other-1], "-o", "jsonpath={.status.podIP}")
		testenv.Contains(t, n.sh("ip route get "+ip), " dev coracle-vxlan ", "%s sends to the other machine's pod by", n.Name)
		n.has(t, "ipvs")
	}
	l.answers(t, pods...)
	for i := range l.nodes {
		l.reaches(t, i, pods...)
	}
}

// reaches waits until a machine has had answers from all of these pods, and none from another, in one turn.
func (l *lab) reaches(t *testing.T, i int, pods ...string) {
	t.Helper()
	n := l.nodes[i]
	l.await(t, fmt.Sprintf("%s reaches %q by the Service and no other pod", n.Name, pods), func() error {
		var got []string
		for range 4 {
			if pod := n.asks(t, "web"); !slices.Contains(got, pod) {
				got = append(got, pod)
			}
		}
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(pods))) {
			return fmt.Errorf("it reaches %q", got)
		}
		return nil
	})
}

// testReadiness: a pod that is not ready gets no connections from either machine, and one that is does.
func testReadiness(t *testing.T, l *lab) {
	pods := []string{l.pod(1), l.pod(2)}
	l.exec(t, "deployment/web-1", "testbox", "get", "http://127.0.0.1:8080/fail")
	for i := range l.nodes {
		l.reaches(t, i, pods[1])
	}
	l.kube.Kubectl("delete", "pod", pods[0], "--wait=true")
	l.running(t, 1)
	pods[0] = l.pod(1)
	for i := range l.nodes {
		l.reaches(t, i, pods...)
	}
}

// testRollingUpdate: one pod on each machine is replaced by another one, and the Service leads to the new ones.
func testRollingUpdate(t *testing.T, l *lab) {
	old := []string{l.pod(1), l.pod(2)}
	for i := range l.nodes {
		deployment := fmt.Sprintf("deployment/web-%d", i+1)
		l.kube.Kubectl("rollout", "restart", deployment)
		l.await(t, deployment+" is rolled out, and the old pod is gone", func() error {
			_, err := l.kube.Try("rollout", "status", deployment, "--timeout", "10s")
			if _, there := l.kube.Try("get", "pod", old[i]); err == nil && there == nil {
				err = fmt.Errorf("%s is there", old[i])
			}
			return err
		})
	}
	pods := []string{l.pod(1), l.pod(2)}
	for i, n := range l.nodes {
		n.has(t, "ipvs")
		l.reaches(t, i, pods...)
	}
	l.answers(t, pods...)
}

// testBack: one machine goes back to nftables, which takes away what IPVS had; the other one stays as it is.
func testBack(t *testing.T, l *lab) {
	second, pods := l.nodes[1], []string{l.pod(1), l.pod(2)}
	second.settings("--proxy-mode=nftables")
	second.restart(t, nftablesAsked)
	second.has(t, "nftables")
	testenv.Contains(t, second.log(), `connections="most of those that began with it end`, "the log says what the change ends:")
	l.nodes[0].has(t, "ipvs")
	l.answers(t, pods...)
	for i := range l.nodes {
		l.reaches(t, i, pods...)
	}
}

// testDeath: one machine loses its power, and the other one's IPVS sends nothing to its pod any more.
func testDeath(t *testing.T, l *lab) {
	pods := []string{l.pod(1), l.pod(2)}
	l.nodes[1].PowerOff()
	l.nodes = l.nodes[:1]
	l.reaches(t, 0, pods[0])
	l.nodes[0].has(t, "ipvs")
	l.answers(t, pods[0])
}
