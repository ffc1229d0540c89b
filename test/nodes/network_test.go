//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// mesh is a cluster of a server and agents, with a pod and a Service for it on each.
type mesh struct {
	*testing.T
	families
	site   *harness.Site
	nodes  []*harness.Server // the first is the server
	device string            // of each machine, for traffic between pods
	pods   [][]string        // their addresses, IPv4 first
}

// patient bounds what has to become so: a minute and more, for a machine that many tests share.
const patient = 3 * time.Minute

// newMesh makes one of both families. Its machines see the folders needs of the host, too.
func newMesh(t *testing.T, machines int, backend, device string, needs ...string) *mesh {
	return newMeshOf(t, both, machines, backend, device, needs...)
}

func newMeshOf(t *testing.T, f families, machines int, backend, device string, needs ...string) *mesh {
	m := newEmptyMesh(t, f, device, needs...)
	m.add(machines, backend, func(int) {})
	return m
}

// newEmptyMesh makes one that has no machines yet.
func newEmptyMesh(t *testing.T, f families, device string, needs ...string) *mesh {
	m := &mesh{T: t, families: f, site: harness.NewSite(t), device: device}
	m.site.Needs = needs
	f.outside(t, m.site)
	return m
}

// add makes the machines. It does something to each node before it starts.
func (m *mesh) add(machines int, backend string, prepare func(i int)) {
	m.Helper()
	f := m.families
	for i := range machines {
		machine := m.site.NewMachine()
		f.prepare(machine)
		var s *harness.Server
		if i == 0 {
			s = machine.NewServer(append(f.networks(), "--network-backend", backend)...)
		} else {
			s = machine.NewAgent(m.nodes[0])
		}
		s.Args = append(s.Args, "--proxy-mode", "nftables") // whose rules are compared
		if f == both {
			s.Args = append(s.Args, "--node-ip", address6(i))
		}
		s.Args = append(s.Args, "--network-iface", m.device[:3]+"*")
		s.AddBoxImage()
		m.nodes = append(m.nodes, s)
		prepare(i)
		m.start(i)
		if i == 0 {
			s.WaitAPI()
		}
	}
}

// second is a second interface of each machine, with addresses that are not the node's.
const second = "lan0"

func address6(i int) string { return fmt.Sprintf("fd77::%d", i+2) }

// address6 is the machine's by IPv6 on the interface for pods' traffic.
func (m *mesh) address6(i int) string {
	if m.device == second {
		return fmt.Sprintf("fd88::%d", i+2)
	}
	return address6(i)
}

// start gives the machine its second address, and starts coracle.
func (m *mesh) start(i int) {
	m.Helper()
	if m.families == both {
		m.run(i, "ip", "addr", "add", address6(i)+"/64", "dev", "eth0", "nodad")
	}
	if m.device == second {
		m.run(i, "sh", "-ec", fmt.Sprintf(`ip link add %[1]s type veth peer name second%[2]d netns outside
ip -n outside link set second%[2]d master site up
ip addr add 10.88.0.%[2]d/24 dev %[1]s
ip addr add fd88::%[2]d/64 dev %[1]s nodad
ip link set %[1]s up`, second, i+2))
	}
	m.nodes[i].Start()
}

func (m *mesh) run(i int, name string, args ...string) string {
	m.Helper()
	out, err := m.nodes[i].Run(name, args...)
	testenv.Require(m, err == nil, "node %d: %v\n%s", i, err, out)
	return strings.TrimSpace(out)
}

// workload is a pod for each node and a Service for each pod.
func (m *mesh) workload() {
	m.Helper()
	var manifest strings.Builder
	for i, n := range m.nodes {
		harness.Eventually(m, patient, "the node is ready", func() error { return m.nodes[0].NodeReady(n) })
		fmt.Fprintf(&manifest, `
{apiVersion: v1, kind: Pod, metadata: {name: box-%[1]d, labels: {box: "%[1]d"}}, spec: {nodeName: %[2]s, terminationGracePeriodSeconds: 0, tolerations: [{operator: Exists}], containers: [
  {name: box, image: "%[3]s", imagePullPolicy: Never, command: [sh, -c, "testbox echo 9 & testbox tcp 9 & exec testbox serve"], ports: [{containerPort: 8080, hostPort: 8088}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: box-%[1]d}, spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {box: "%[1]d"},
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 3008%[1]d}, {name: echo, port: 9}]}}
---`, i, n.NodeName(), harness.BoxImage)
	}
	m.nodes[0].Apply(manifest.String())
	for i := range m.nodes {
		m.podAddresses(i)
	}
}

func (m *mesh) podAddresses(i int) {
	m.Helper()
	m.nodes[0].Kubectl("wait", "--for=condition=Ready", fmt.Sprintf("pod/box-%d", i), "--timeout=180s")
	ips := strings.Fields(m.nodes[0].Kubectl("get", "pod", fmt.Sprintf("box-%d", i), "-o", "jsonpath={.status.podIPs[*].ip}"))
	testenv.Require(m, len(ips) == m.count(), "pod %d has the addresses %v", i, ips)
	m.pods = append(m.pods, ips)
}

// visit is a URL and what it should answer; "" for whatever is no error.
type visit struct{ url, want string }

// script visits all, each until it answers, and prints the answers, one on a line, without a port at the end.
func script(box string, visits []visit) string {
	var b strings.Builder
	for _, v := range visits {
		fmt.Fprintf(&b, "a=$(%s get %s 180) || echo failed: %s; echo \"${a%%:*}\"\n", box, v.url, v.url)
	}
	return b.String()
}

// judge compares what a script printed with what was wanted.
func (m *mesh) judge(from, out string, visits []visit) {
	m.Helper()
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	if len(lines) != len(visits) {
		m.Errorf("%s: %d answers to %d visits:\n%s", from, len(lines), len(visits), out)
		return
	}
	for i, v := range visits {
		if v.want != "" && lines[i] != v.want {
			m.Errorf("%s: %s answers %q, want %q", from, v.url, lines[i], v.want)
		}
	}
}

func host(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

// exec runs a shell script in a pod, again until it has run: a node whose link has just changed may be without its
// tunnel for a moment.
func (m *mesh) exec(i int, text string) string {
	m.Helper()
	return m.nodes[0].Insists("exec", fmt.Sprintf("box-%d", i), "--", "sh", "-c", text)
}

// allMeet: every pod reaches every pod with its own address, of each family, and every Service; so does every
// host; names are found; and what comes from outside reaches node ports and host ports.
func (m *mesh) allMeet() {
	m.Helper()
	services := make([][]string, len(m.nodes))
	for j := range m.nodes {
		services[j] = strings.Fields(m.nodes[0].Kubectl("get", "service", fmt.Sprintf("box-%d", j), "-o", "jsonpath={.spec.clusterIPs[*]}"))
	}
	for i := range m.nodes {
		var inside, onHost, outside []visit
		for j := range m.nodes {
			name := fmt.Sprintf("box-%d", j)
			for f, ip := range m.pods[j] {
				inside = append(inside, visit{"http://" + host(ip) + ":8080/peer", host(m.pods[i][f])})
				onHost = append(onHost, visit{"http://" + host(ip) + ":8080/", name})
				inside = append(inside, visit{"http://" + host(services[j][f]) + "/", name})
				onHost = append(onHost, visit{"http://" + host(services[j][f]) + "/", name})
			}
			inside = append(inside, visit{"http://" + name + ".default.svc.cluster.local/", name})
			for _, ip := range m.addresses(i) {
				outside = append(outside, visit{fmt.Sprintf("http://%s:3008%d/", host(ip), j), name})
			}
		}
		for _, ip := range m.addresses(i) {
			outside = append(outside, visit{"http://" + host(ip) + ":8088/", fmt.Sprintf("box-%d", i)})
		}
		m.judge(fmt.Sprintf("pod %d", i), m.exec(i, script("testbox", inside)), inside)
		m.judge(fmt.Sprintf("host %d", i), m.run(i, "sh", "-c", script(harness.Box(m), onHost)), onHost)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		out, err := harness.Output(m.nodes[i].Outside(ctx, "sh", "-c", script(harness.Box(m), outside)))
		cancel()
		testenv.Check(m, err)
		m.judge(fmt.Sprintf("outside of %d", i), out, outside)
	}
}

// largePackets: packets as large as pods' devices take them get to other nodes' pods, once the underlay has that size.
// They are as large as wanted for each family, IPv4 first.
func (m *mesh) largePackets(underlay int, sizes ...int) {
	m.Helper()
	for i := range m.nodes {
		m.run(i, "ip", "link", "set", m.device, "mtu", fmt.Sprint(underlay))
	}
	// A packet that comes to a node before that node knows of the larger underlay has its sender remember the smaller
	// size for ten minutes.
	for i := range m.nodes {
		mtu := m.exec(i, fmt.Sprintf("n=0; until mtu=$(cat /sys/class/net/eth0/mtu); [ \"$mtu\" = %d ] || [ $n = 180 ]; do n=$((n+1)); sleep 1; done; echo $mtu", slices.Max(sizes)))
		if want := fmt.Sprint(slices.Max(sizes)); mtu != want {
			m.Errorf("an underlay of %d: the MTU of pod %d is %s, not %s", underlay, i, mtu, want)
		}
	}
	for i := range m.nodes {
		var text strings.Builder
		for f, want := range sizes {
			for j, ip := range m.pods {
				if i != j {
					fmt.Fprintf(&text, "n=0; until size=$(testbox whole %s:9); [ \"$size\" = %d ] || [ $n = 180 ]; do n=$((n+1)); sleep 1; done; echo $size\n", host(ip[f]), want)
				}
			}
		}
		want := ""
		for _, size := range sizes {
			want += strings.Repeat(fmt.Sprintln(size), len(m.nodes)-1)
		}
		if got := m.exec(i, text.String()); got != strings.TrimSpace(want) {
			m.Errorf("an underlay of %d: whole packets of pod %d are\n%s\nwant\n%s", underlay, i, got, want)
		}
	}
}

// heals: what another program removes of the ways between nodes comes back.
func (m *mesh) heals() {
	m.Helper()
	net4 := m.nodes[0].Kubectl("get", "node", m.nodes[1].NodeName(), "-o", "jsonpath={.spec.podCIDRs[0]}")
	vtep, _, _ := strings.Cut(net4, "/")
	for what, harm := range map[string]string{
		"route":     "ip route del " + net4,
		"neighbour": "ip neigh del " + vtep + " dev coracle-vxlan",
		"fdb":       "PATH=$PATH:/sbin; set -- $(bridge fdb show dev coracle-vxlan); bridge fdb del $1 dev coracle-vxlan dst $3",
		"down":      "ip link set coracle-vxlan down",
		"gone":      "ip link del coracle-vxlan",
	} {
		m.run(0, "sh", "-ec", harm)
		began := time.Now()
		m.judge("after harm to the "+what, m.exec(0, script("testbox", []visit{{"http://" + m.pods[1][0] + ":8080/", ""}, {"http://" + m.pods[2][0] + ":8080/", ""}})),
			[]visit{{"box-1", "box-1"}, {"box-2", "box-2"}})
		m.Logf("%s: reached again after %v", what, time.Since(began))
	}
}

// returns: a node that dies and comes back is reached again, and reaches others.
func (m *mesh) returns() {
	m.Helper()
	const i = 2
	m.nodes[i].PowerOff()
	m.nodes[i].PowerOn()
	m.start(i)
	harness.Eventually(m, patient, "the pod runs again", func() error {
		out, err := m.nodes[0].TryKubectl("exec", fmt.Sprintf("box-%d", i), "--", "ip", "-o", "addr", "show", "eth0")
		if err != nil {
			return err
		}
		if !strings.Contains(out, "10.42.") {
			return fmt.Errorf("its addresses are %s", out)
		}
		return nil
	})
	harness.Eventually(m, patient, "its addresses are reported", func() error {
		out, err := m.nodes[0].TryKubectl("exec", fmt.Sprintf("box-%d", i), "--", "ip", "-o", "addr", "show", "eth0")
		if err != nil {
			return err
		}
		reported, err := m.nodes[0].TryKubectl("get", "pod", fmt.Sprintf("box-%d", i), "-o", "jsonpath={.status.podIPs[*].ip}")
		if err != nil {
			return err
		}
		ips := strings.Fields(reported)
		if len(ips) != 2 || !strings.Contains(out, ips[0]+"/") || !strings.Contains(out, ips[1]+"/") {
			return fmt.Errorf("%v, and it has %s", ips, out)
		}
		m.pods[i] = ips
		return nil
	})
}

// TestNetworkVXLAN: a cluster's pods, Services and hosts reach one another through the tunnel, whatever happens to it.
func TestNetworkVXLAN(t *testing.T) {
	m := newMesh(t, 3, "vxlan", "eth0")
	m.workload()
	m.listensAsDocumented("vxlan")
	m.allMeet()
	m.restarts()
	m.largePackets(1500, 1450, 1450)
	m.largePackets(1280, 1230, 1280)
	m.resizes()
	m.unplugged(1)
	m.heals()
	m.returns()
	m.allMeet()
}

// TestNetworkHostGateway: the same with nodes that are gateways to their pods, by another interface than the one that
// has the nodes' addresses.
func TestNetworkHostGateway(t *testing.T) {
	m := newMesh(t, 3, "host-gw", second)
	m.workload()
	m.listensAsDocumented("host-gw")
	m.allMeet()
	m.largePackets(1280, 1280, 1280)
	m.unplugged(1)
	m.readdressed(1)
	m.largePackets(1400, 1400, 1400)
	m.allMeet()
}

// TestNetworkNone: coracle makes no pod network where that is left to another plugin, and takes up the one that comes.
func TestNetworkNone(t *testing.T) {
	s := harness.NewMachine(t).NewServer("--network-backend", "none")
	s.StartAPI()
	harness.Eventually(t, patient, "the node waits for a network", func() error {
		out, err := s.TryKubectl("get", "node", s.NodeName(), "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].message}`)
		if err == nil && !strings.Contains(out, "cni plugin not initialized") {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	if out, err := s.Run("sh", "-c", "ip -o link; ip route show proto 122"); err != nil || strings.Contains(out, "coracle") || strings.Contains(out, "10.42") {
		t.Errorf("there is something of a pod network: %v\n%s", err, out)
	}
	const other = `mkdir -p /etc/cni/net.d /opt/cni/bin
printf '#!/bin/sh\n' > /opt/cni/bin/other
chmod +x /opt/cni/bin/other
echo '{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "other"}]}' > /etc/cni/net.d/10-other.conflist`
	if out, err := s.Run("sh", "-ec", other); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.WaitReady()
	harness.Eventually(t, patient, "coracle status says that all is well, and who has the network", func() error {
		out, err := s.Run(s.Coracle(), "status", "--data-dir", s.DataDir)
		if want := "left to another plugin"; err != nil || !strings.Contains(out, want) {
			return fmt.Errorf("%w, want %q in\n%s", err, want, out)
		}
		return nil
	})
}
