//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

// moving is a cluster of three servers, the third with a node, and an agent, whose machines find their addresses by
// themselves.
type moving struct {
	t          *testing.T
	servers    []*harness.Server
	agent      *harness.Server
	containers string
	writes     int
}

func newMoving(t *testing.T) *moving {
	site := harness.NewSite(t)
	// The pods are to be the same at the end: none is moved, however long a node is away.
	first := site.NewMachine().NewServer("--disable-agent", "--default-toleration-seconds", "600").FindIP()
	first.StartAPI()
	m := &moving{t: t, servers: []*harness.Server{first}}
	for i := range 2 {
		var s *harness.Server
		if i == 0 {
			s = site.NewMachine().NewPeer(first, "--disable-agent").FindIP()
		} else {
			s = site.NewMachine().NewPeer(first).FindIP()
			s.AddBoxImage()
		}
		s.StartAPI()
		m.servers = append(m.servers, s)
	}
	harness.Eventually(t, harness.Soon, "all three vote", func() error {
		out, err := first.Run(first.Coracle(), "store", "status", "--data-dir", first.DataDir)
		if err == nil && strings.Count(out, " voter ") < 2 {
			err = fmt.Errorf("not three voters yet:\n%s", out)
		}
		return err
	})
	m.agent = site.NewMachine().NewAgent(first).FindIP()
	m.agent.AddBoxImage()
	m.agent.Start()
	for _, n := range m.nodes() {
		harness.Eventually(t, harness.Soon, "the nodes are ready", func() error { return first.NodeReady(n) })
	}
	first.InsistsOn(spreadService)
	harness.Eventually(t, harness.Soon, "the Service has two endpoints", func() error { return endpoints(first, 2) })
	m.containers = m.running()
	m.heals("at first", time.Now())
	return m
}

func (m *moving) nodes() []*harness.Server { return []*harness.Server{m.servers[2], m.agent} }

func (m *moving) all() []*harness.Server {
	return append(append([]*harness.Server(nil), m.servers...), m.agent)
}

// running are the containers of the Service's pods.
func (m *moving) running() string {
	m.t.Helper()
	return m.servers[0].Insists("get", "pods", "-l", "app=d", "-o", "jsonpath={.items[*].status.containerStatuses[0].containerID}")
}

// pods fails unless both pods can be looked into, each on its node, and have their cluster's DNS.
func (m *moving) pods() error {
	s := m.servers[0]
	out, err := s.TryKubectl("get", "pods", "-l", "app=d", "-o", "name")
	if err == nil && len(strings.Fields(out)) != 2 {
		err = fmt.Errorf("not two pods: %s", out)
	}
	for pod := range strings.FieldsSeq(out) {
		for _, command := range [][]string{{"testbox", "get", "http://127.0.0.1:8080/", "1"}, {"testbox", "lookup", "kubernetes.default.svc.cluster.local"}} {
			if err == nil {
				_, err = s.TryKubectl(append([]string{"exec", pod, "--"}, command...)...)
			}
		}
	}
	return err
}

// heals waits until all is as it should be at the machines' present addresses: each server takes writes, the Service
// kubernetes has all three, both nodes are ready at their address, all machines know one another, and the pods go on
// and can be looked into.
func (m *moving) heals(what string, since time.Time) {
	m.t.Helper()
	for _, s := range m.servers {
		eventually(m.t, since, fmt.Sprintf("%s: server %d takes writes", what, s.Number), func() error {
			m.writes++
			_, err := s.TryKubectl("create", "configmap", fmt.Sprintf("write-%d", m.writes), "--request-timeout=20s")
			return err
		})
	}
	eventually(m.t, since, what+": all are behind the Service kubernetes", func() error {
		out, err := m.servers[0].TryKubectl("get", "endpointslices", "kubernetes", "-o", "jsonpath={.endpoints[?(@.conditions.ready==true)].addresses[0]}")
		for _, s := range m.servers {
			if err == nil && !strings.Contains(out+" ", s.IP+" ") {
				err = fmt.Errorf("%s lacks %s", out, s.IP)
			}
		}
		if err == nil && len(strings.Fields(out)) != len(m.servers) {
			err = fmt.Errorf("there are more: %s", out)
		}
		return err
	})
	for _, n := range m.nodes() {
		eventually(m.t, since, what+": "+n.NodeName()+" is ready", func() error { return m.servers[0].NodeReady(n) })
	}
	eventually(m.t, since, what+": all machines know one another", func() error { return harness.KnowOneAnother(m.all(), "alive alive alive alive ") })
	eventually(m.t, since, what+": the pods answer", m.pods)
	eventually(m.t, since, what+": the Service has two endpoints", func() error { return endpoints(m.servers[0], 2) })
	if now := m.running(); now != m.containers {
		m.t.Errorf("%s: the pods' containers are %s and were %s", what, now, m.containers)
	}
	for _, s := range m.all() {
		_ = s.Alive()
	}
}

// TestClusterHealsAfterAddressesChange: an agent, and then all machines get other addresses while they run, and the
// cluster heals by itself.
func TestClusterHealsAfterAddressesChange(t *testing.T) {
	t.Parallel() // it mostly waits
	m := newMoving(t)
	m.whileOn(func(what string, move func()) {
		moved := time.Now()
		move()
		m.heals(what, moved)
	})
}

// TestReaddressUnderTraffic: no connection between pods that is open or comes while machines get other addresses fails.
func TestReaddressUnderTraffic(t *testing.T) {
	harness.ByHand(t)
	m := newMoving(t)
	m.whileOn(func(what string, move func()) {
		x := m.crossing()
		moved := time.Now()
		move()
		m.heals(what, moved)
		x.end(what, "tcp:")
	})
}

// whileOn gives first the agent and then all machines another address.
func (m *moving) whileOn(moves func(what string, move func())) {
	moves("the agent moved", func() { m.agent.Readdress("10.77.0.105") })
	moves("all moved to another network", func() {
		for i, s := range m.all() {
			s.Readdress(fmt.Sprintf("10.78.0.%d", 20+i))
		}
	})
}

// TestReaddressWhileOff: all machines get other addresses while they are off, and the cluster heals by itself.
func TestReaddressWhileOff(t *testing.T) {
	harness.ByHand(t)
	newMoving(t).allOff()
}

// crossing is traffic from the pod of each node to that of the other one, by its own address and by that of a Service
// which has no other endpoint.
func (m *moving) crossing() *traffic {
	m.t.Helper()
	s := m.servers[0]
	type end struct{ pod, ip, service string }
	var ends []end
	for _, n := range m.nodes() {
		pod, ip, _ := strings.Cut(s.Insists("get", "pods", "-l", "app=d", "--field-selector", "spec.nodeName="+n.NodeName(), "-o", "jsonpath={.items[*].metadata.name} {.items[*].status.podIP}"), " ")
		s.Insists("label", "--overwrite", "pod", pod, "place="+n.NodeName())
		s.InsistsOn(fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: on-%[1]s}, spec: {selector: {place: %[1]s}, ports: [{name: http, port: 80, targetPort: 8080}, {name: echo, port: 9}]}}", n.NodeName()))
		ends = append(ends, end{pod, ip, s.Insists("get", "service", "on-"+n.NodeName(), "-o", "jsonpath={.spec.clusterIP}")})
	}
	x := &traffic{TB: m.t}
	for i, n := range m.nodes() {
		from, to := ends[i], ends[1-i]
		served(m.t, n, "http://"+to.service+"/")
		x.fromPod(s, n, from.pod, from.ip, "1s", "tcp://"+to.ip+":9", "tcp://"+to.service+":9", "http://"+to.ip+":8080/", "http://"+to.service+"/")
	}
	x.goesOn("before anything moves", 5)
	return x
}

// allOff: all machines are off and come back with other addresses, the agent and one server first; no address that
// anybody knew is good any more.
func (m *moving) allOff() {
	m.t.Helper()
	for _, s := range m.all() {
		s.Kill()
	}
	for i, s := range m.all() {
		s.Readdress(fmt.Sprintf("10.79.0.%d", 50-i))
	}
	// Each by itself finds no other, and logs what to do: one after the other, for together they would find one
	// another.
	for _, s := range []*harness.Server{m.agent, m.servers[1]} {
		s.Start()
		harness.Eventually(m.t, 2*harness.Soon, "coracle status says what to do", func() error {
			out, err := s.Run(s.Coracle(), "status", "--data-dir", s.DataDir)
			if want := "--server https://ADDRESS:6443"; !strings.Contains(out, want) {
				return fmt.Errorf("no %s on %s: %w\n%s", want, s.NodeName(), err, out)
			}
			return nil
		})
	}
	started := time.Now()
	for _, s := range []*harness.Server{m.servers[2], m.servers[0]} {
		s.Start()
	}
	m.heals("all came back elsewhere", started)
}
