//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Lines of an agent's log.
const (
	firstReached = "if it ever is not, Services go round it"
	notReached   = "a node is not reached from this machine"
	reachedAgain = "a node is reached again"
)

// visits connects to an address from a machine's host, so often that an endpoint which no pod answers for would be met.
func visits(from *harness.Machine, address string) error {
	out, err := from.Run("bash", "-c", fmt.Sprintf("for i in {1..20}; do timeout 5 bash -c 'exec 3<>/dev/tcp/%s/80' || exit 1; done", address))
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// sendsTo fails unless a machine's rules send what is for a Service to a pod's address, or do not.
func sendsTo(from *harness.Machine, ip string, want bool) error {
	out, err := from.NFT("list", "table", "ip", "kube-proxy")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if got := regexp.MustCompile(` ` + regexp.QuoteMeta(ip) + ` ?[.:] ?8080\b`).MatchString(out); got != want {
		return fmt.Errorf("that the rules send to %s is %v:\n%s", ip, got, out)
	}
	return nil
}

// allReached fails unless a machine has reached each node again that it did not reach.
func allReached(a *harness.Server) error {
	data, err := os.ReadFile(a.Log)
	if lost, found := strings.Count(string(data), notReached), strings.Count(string(data), reachedAgain); err == nil && lost != found {
		err = fmt.Errorf("%s did not reach a node %d times, and did again %d times:\n%s", a.NodeName(), lost, found, a.LogTail(30))
	}
	return err
}

// TestUnreachableNode: with no server left that could write anything, a Service sends nothing to a node that has
// vanished; and its return undoes it. That datagrams are lost marks no node, and a node that is cut off from all others
// goes on as it was.
func TestUnreachableNode(t *testing.T) {
	harness.ByHand(t)
	site := harness.NewSite(t)
	outsideNames(t, site)
	s, agents := spreadOn(t, site, "--debug", "--proxy-mode", "nftables") // whose rules are read
	address := s.Kubectl("get", "service", "d", "-o", "jsonpath={.spec.clusterIP}")
	stays, victim := agents[0], agents[1]
	both := func(since time.Time) {
		t.Helper()
		eventually(t, since, "the nodes are ready", func() error { return errors.Join(isReady(s, stays, "True"), isReady(s, victim, "True")) })
		eventually(t, since, "the Service has two endpoints", func() error { return endpoints(s, 2) })
		pod := podOn(s, victim)
		for _, a := range agents {
			eventually(t, since, "the rules have the pod of the node that is to vanish", func() error { return sendsTo(a.Machine, pod, true) })
			eventually(t, since, "each connection succeeds", func() error { return visits(a.Machine, address) })
		}
	}
	began := time.Now()
	for _, a := range agents {
		eventually(t, began, "it has reached the other one, which counts from then on", func() error { return a.LogSays(firstReached) })
	}
	both(began)

	// A window in which nothing may happen has no event that ends it. Gossip asks each member within two seconds. A
	// machine without CPU may see what is not so, and for no longer than the next look; what lost datagrams made it
	// think would last as long as they are lost.
	site.LoseDatagrams(victim.Machine, stays.Machine, 6443, 100)
	time.Sleep(8 * time.Second)
	for _, a := range agents {
		harness.Eventually(t, harness.Soon, "that datagrams are lost makes no node avoid another", func() error { return allReached(a) })
	}
	site.Heal()
	both(time.Now())

	pod := podOn(s, victim)
	names := &traffic{TB: t}
	names.fromPod(s, stays, s.Kubectl("get", "pods", "-l", "app=d", "--field-selector", "spec.nodeName="+stays.NodeName(), "-o", "jsonpath={.items[*].metadata.name}"), podOn(s, stays),
		"5s", "name:d.default.svc.cluster.local", "name:kubernetes.default", "name:*.example.test.")
	names.goesOn("before anything happens", 5)
	vanished := time.Now()
	site.CutOff(s.Machine)
	site.CutOff(victim.Machine)
	eventually(t, vanished, "the rules of the node that stays have no pod of the one that vanished", func() error { return sendsTo(stays.Machine, pod, false) })
	eventually(t, vanished, "each connection from there succeeds", func() error { return visits(stays.Machine, address) })
	eventually(t, vanished, "the node that is cut off reaches its own pod", func() error { return visits(victim.Machine, address) })
	testenv.Check(t, stays.LogSays(notReached))

	back := time.Now()
	site.Heal()
	for _, a := range agents {
		eventually(t, back, "they reach one another", func() error { return allReached(a) })
	}
	both(back)

	pod = podOn(s, victim)
	off := time.Now()
	site.CutOff(s.Machine)
	victim.PowerOff()
	eventually(t, off, "a machine without power is in no rules", func() error { return sendsTo(stays.Machine, pod, false) })
	eventually(t, off, "each connection succeeds", func() error { return visits(stays.Machine, address) })
	names.end("a node vanishes, comes back and loses its power, and no server answers", "")
}

// outsideNames has a resolver outside of the machines answer for all names, at the address of the machines' resolver.
func outsideNames(t *testing.T, site *harness.Site) {
	t.Helper()
	var c net.PacketConn
	testenv.NoError(t, site.Do(func() (err error) { c, err = net.ListenPacket("udp", "10.77.0.1:53"); return err }))
	server := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, question *dns.Msg) {
		answer := new(dns.Msg).SetReply(question)
		if q := question.Question[0]; q.Qtype == dns.TypeA {
			answer.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: q.Qclass, Ttl: 60}, A: net.IPv4(192, 0, 2, 1)}}
		}
		_ = w.WriteMsg(answer)
	})}
	done := make(chan error, 1) // one result
	go func() { done <- server.ActivateAndServe() }()
	t.Cleanup(func() { testenv.Check(t, errors.Join(server.Shutdown(), <-done)) })
}

// podOn is the address of the Service's endpoint on a node.
func podOn(s, node *harness.Server) string {
	s.T.Helper()
	var ip string
	harness.Eventually(s.T, harness.Soon, "one endpoint on "+node.NodeName(), func() error {
		out, err := s.TryKubectl("get", "endpointslices", "-l", "kubernetes.io/service-name=d", "-o",
			fmt.Sprintf(`jsonpath={.items[*].endpoints[?(@.nodeName=="%s")].addresses[0]}`, node.NodeName()))
		if ips := strings.Fields(out); err == nil && len(ips) != 1 {
			err = fmt.Errorf("there are %q", out)
		}
		ip = strings.TrimSpace(out)
		return err
	})
	return ip
}
