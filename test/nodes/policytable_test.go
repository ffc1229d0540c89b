//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/policymodel"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// policyTable is the truth table of NetworkPolicies between real pods of two nodes: what each meets at each other one,
// beside what the documentation says.
type policyTable struct {
	*mesh
	model     policymodel.Model
	all       []policymodel.Connection // of one pod of the dozen to one, by either family
	rand      *rand.Rand
	generator policymodel.Generator

	open, refused [2]int // between pods of one node, and of two
}

// TestNetworkPolicyTable: whatever way packets take between two nodes, a dozen pods on both meet one another as
// policies say, by TCP and UDP and both families, and while policies are in force the way may change. Of the listed
// policies chance picks some, and all are tried at the whole length.
func TestNetworkPolicyTable(t *testing.T) {
	p := newPolicyTable(t)
	for i, backend := range []string{clusterconfig.NetworkVXLAN, clusterconfig.NetworkHostGateway, clusterconfig.NetworkWireGuard} {
		if i > 0 {
			p.changeBackend(backend)
			p.holds(backend+", with the policies of before", p.sample(p.model, 12))
		}
		began, open, refused := time.Now(), p.open, p.refused
		cases, generated, share := policymodel.Listed(), 10, 4
		if !whole {
			p.rand.Shuffle(len(cases), func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
			cases, generated, share = cases[:8], 2, 12
		}
		for _, c := range cases {
			p.check(backend+": "+c.Name, share, p.listed(c))
		}
		for i := range generated {
			var policies []*networkingv1.NetworkPolicy
			for j := range 1 + p.rand.IntN(5) {
				policy := p.generator.Policy(fmt.Sprint("generated-", j))
				policymodel.FillIn(policy)
				policies = append(policies, policy)
			}
			p.check(fmt.Sprintf("%s: generated %d", backend, i), share, policies...)
		}
		for between, nodes := range []string{"of one node", "of two nodes"} {
			more, less := p.open[between]-open[between], p.refused[between]-refused[between]
			t.Logf("%s, %v: between pods %s %d connections were open and %d refused", backend, time.Since(began).Round(time.Second), nodes, more, less)
			testenv.False(t, more == 0 || less == 0, "%s: between pods %s this proves nothing", backend, nodes)
		}
	}
	p.check("no policy", 12)
}

func newPolicyTable(t *testing.T) *policyTable {
	seed := testenv.Seed(t)
	m := newMesh(t, 2, clusterconfig.NetworkVXLAN, "eth0")
	p := &policyTable{mesh: m, model: policymodel.Model{Namespaces: policymodel.Namespaces(), Pods: map[netip.Addr]*corev1.Pod{}}, rand: rand.New(rand.NewPCG(seed, 0))}
	p.generator.Rand = p.rand
	var manifest strings.Builder
	for name, its := range p.model.Namespaces {
		its[corev1.LabelMetadataName] = name
		manifest.WriteString(document(t, &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name, Labels: its}}))
	}
	pods := policymodel.Pods()
	for i, pod := range pods {
		manifest.WriteString(document(t, p.podOn(m.nodes[i%2].NodeName(), pod)))
	}
	for i, n := range m.nodes {
		harness.Eventually(t, patient, "the node is ready", func() error { return m.nodes[0].NodeReady(n) })
		m.run(i, "sh", "-ec", "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit; echo 0 > /proc/sys/net/ipv6/icmp/ratelimit") // so many refusals of datagrams
	}
	harness.Eventually(t, patient, "pods are made", func() error { // once their service accounts are there
		return harness.Succeeds(m.nodes[0].In(t).TryApply(manifest.String()))
	})
	p.learn(pods)
	p.connect()
	return p
}

// document is an object in a manifest.
func document(t testing.TB, object any) string {
	t.Helper()
	text := testenv.Must(yaml.Marshal(object))(t)
	return "---\n" + string(text)
}

// podOn has a pod of the dozen run on a node.
func (p *policyTable) podOn(node string, pod *corev1.Pod) *corev1.Pod {
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	pod.Spec.NodeName, pod.Spec.TerminationGracePeriodSeconds = node, new(int64)
	pod.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	c := &pod.Spec.Containers[0]
	c.Name, c.Image, c.ImagePullPolicy, c.Command = "box", harness.BoxImage, corev1.PullNever, []string{"testbox", "table"}
	for _, port := range policymodel.Served() {
		c.Command = append(c.Command, fmt.Sprint(port))
	}
	c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(7000)}}}
	return pod
}

// learn waits until all pods serve, and takes their addresses down.
func (p *policyTable) learn(pods []*corev1.Pod) {
	p.Helper()
	s := p.nodes[0]
	addresses := map[string][]string{}
	for namespace := range p.model.Namespaces {
		s.Kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod", "--all", "--timeout=180s")
		out := s.Kubectl("get", "pods", "-n", namespace, "-o", `jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.status.podIPs[*].ip}{"\n"}{end}`)
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			addresses[words[0]] = words[1:]
		}
	}
	p.generator.Networks = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	for _, pod := range pods {
		ips := addresses[pod.Namespace+"/"+pod.Name]
		testenv.Require(p, len(ips) == 2, "pod %s/%s has the addresses %v", pod.Namespace, pod.Name, ips)
		for _, text := range ips {
			ip := netip.MustParseAddr(text)
			p.model.Pods[ip] = pod
			pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: text})
			network := netip.PrefixFrom(ip, ip.BitLen()*3/4).Masked() // of a node's pods
			p.generator.Networks = append(p.generator.Networks, ip, network.Addr())
			p.generator.Near = append(p.generator.Near, ip)
		}
	}
}

// connect lists what the pods can open to one another.
func (p *policyTable) connect() {
	ends := slices.SortedFunc(maps.Keys(p.model.Pods), netip.Addr.Compare) // so that a seed says all
	for _, from := range ends {
		for _, to := range ends {
			if from.Is4() != to.Is4() {
				continue
			}
			for _, proto := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
				for _, port := range policymodel.Served() {
					p.all = append(p.all, policymodel.Connection{From: from, To: to, Proto: proto, Port: port})
				}
			}
		}
	}
}

// listed is a policy of the list with the networks of this cluster, and with a pod as exception.
func (p *policyTable) listed(c policymodel.Case) *networkingv1.NetworkPolicy {
	p.Helper()
	one := p.model.Pods[p.generator.Near[len(p.generator.Near)-1]].Status.PodIPs
	spec := strings.NewReplacer("10.42.1.12/31", one[0].IP+"/32", "fd00:42:0:1::c/127", one[1].IP+"/128", "10.42.2.0/24", "10.42.0.0/24", "fd00:42:0:1::/64", "fd42:0:0:1::/64").Replace(c.Spec)
	return testenv.Must(policymodel.Policy(c.Namespace, "listed", spec))(p)
}

// sample is one connection of so many, and each of which the policies of before said something else.
func (p *policyTable) sample(before policymodel.Model, share int) (out []policymodel.Connection) {
	for _, c := range p.all {
		if p.rand.IntN(share) == 0 || before.Allowed(c, nil) != p.model.Allowed(c, nil) {
			out = append(out, c)
		}
	}
	return out
}

// check has these policies take the place of those of before.
func (p *policyTable) check(name string, share int, policies ...*networkingv1.NetworkPolicy) {
	p.Helper()
	before, s := p.model, p.nodes[0]
	if len(before.Policies) > 0 {
		s.Kubectl("delete", "networkpolicies", "--all", "--all-namespaces")
	}
	p.model.Policies = policies
	var manifest strings.Builder
	for _, policy := range policies {
		policy.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
		manifest.WriteString(document(p, policy))
	}
	if len(policies) > 0 {
		s.Apply(manifest.String())
	}
	p.takesEffect(name, before)
	p.holds(name, p.sample(before, share))
	if p.Failed() {
		p.Fatalf("the policies are\n%s", manifest.String())
	}
}

// takesEffect waits until some connections meet what they should of which the policies of before said something else,
// one of each kind. A connection that a change of policies cuts has no answer for seconds, and among hundreds there is
// such a one nearly always.
func (p *policyTable) takesEffect(name string, before policymodel.Model) {
	p.Helper()
	type kind struct {
		from, to string // nodes
		four     bool
		proto    corev1.Protocol
	}
	few := map[kind]policymodel.Connection{}
	for _, c := range p.all {
		if before.Allowed(c, nil) != p.model.Allowed(c, nil) {
			few[kind{p.model.Pods[c.From].Spec.NodeName, p.model.Pods[c.To].Spec.NodeName, c.To.Is4(), c.Proto}] = c
		}
	}
	tried := slices.Collect(maps.Values(few))
	harness.Eventually(p, patient, name+" takes effect", func() error { return p.try(tried) })
}

// holds waits until all of these connections at once meet what they should.
func (p *policyTable) holds(name string, tried []policymodel.Connection) {
	p.Helper()
	began, times := time.Now(), 0
	harness.Eventually(p, patient, name, func() error {
		times++
		err := p.try(tried)
		if err != nil {
			p.Logf("%s, attempt %d:\n%v", name, times, err)
		}
		return err
	})
	p.Logf("%s: %d connections are as the policies say after %v, at attempt %d", name, len(tried), time.Since(began).Round(100*time.Millisecond), times)
	for _, c := range tried {
		between := 0
		if p.model.Pods[c.From].Spec.NodeName != p.model.Pods[c.To].Spec.NodeName {
			between = 1
		}
		if p.model.Allowed(c, nil) {
			p.open[between]++
		} else {
			p.refused[between]++
		}
	}
}

// try has all pods open their connections at the same time, and says which of them are not as they should be.
func (p *policyTable) try(tried []policymodel.Connection) error {
	of := map[*corev1.Pod][]policymodel.Connection{}
	for _, c := range tried {
		pod := p.model.Pods[c.From]
		of[pod] = append(of[pod], c)
	}
	var errs []error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for pod, list := range of {
		wg.Go(func() {
			met, err := p.ask(pod, list)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("%s/%s: %w", pod.Namespace, pod.Name, err))
				return
			}
			for i, c := range list {
				want := denied
				if p.model.Allowed(c, nil) {
					want = open
				}
				if met[i] != want {
					to := p.model.Pods[c.To]
					errs = append(errs, fmt.Errorf("%s/%s on %s to %s/%s on %s, %v to %v %s %d: %s, want %s",
						pod.Namespace, pod.Name, pod.Spec.NodeName, to.Namespace, to.Name, to.Spec.NodeName, c.From, c.To, c.Proto, c.Port, met[i], want))
				}
			}
		})
	}
	wg.Wait()
	if more := len(errs) - 8; more > 0 {
		errs = append(errs[:8], fmt.Errorf("and %d more of %d", more, len(tried)))
	}
	return errors.Join(errs...)
}

// ask has a pod open connections, and returns what it met. The question comes from the pod's own node, which always
// reaches it.
func (p *policyTable) ask(pod *corev1.Pod, list []policymodel.Connection) ([]string, error) {
	var question bytes.Buffer
	for _, c := range list {
		fmt.Fprintf(&question, "%s %v\n", strings.ToLower(string(c.Proto)), netip.AddrPortFrom(c.To, uint16(c.Port)))
	}
	machine := p.nodes[slices.IndexFunc(p.nodes, func(n *harness.Server) bool { return n.NodeName() == pod.Spec.NodeName })].Machine
	client := http.Client{Timeout: patient, Transport: &http.Transport{DialContext: machine.Dial, DisableKeepAlives: true}}
	answer, err := client.Post("http://"+pod.Status.PodIPs[0].IP+":7000/", "text/plain", &question)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	met := strings.Split(strings.TrimSpace(string(text)), "\n")
	if err == nil && len(met) != len(list) {
		err = fmt.Errorf("%d answers to %d questions: %s", len(met), len(list), text)
	}
	return met, err
}
