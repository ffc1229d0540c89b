//go:build bench

// SPDX-License-Identifier: Apache-2.0

package benchnet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/services"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/watchapi"
)

const (
	nodeIP   = "192.0.2.1"
	podA     = "10.42.0.2"
	podB     = "10.42.0.6"
	metrics  = "127.0.0.1:10249"
	namePort = 8080 // answers a connection with the pod's name
)

// side is a node with two pods and one of the two proxies.
type side struct {
	name string
	t    *testing.T
	ns   *netns.NS
	api  *watchapi.API
	url  string
	pods map[string]*netns.NS // by address
	sink *sink
	proc *process
}

// newSide has the node, and nothing that serves Services yet.
func newSide(t *testing.T, name string) *side {
	t.Helper()
	s := &side{name: name, t: t, ns: netns.New(t), pods: map[string]*netns.NS{}}
	for i, ip := range []string{podA, podB} {
		pod := netns.New(t)
		gateway := netip.MustParsePrefix(ip + "/30").Masked().Addr().Next().String()
		netns.Connect(t, s.ns, fmt.Sprint("pod", i), []string{gateway + "/30"}, pod, "eth0", []string{ip + "/30"})
		netns.Route(t, pod, gateway, "0.0.0.0/0")
		s.pods[ip] = pod
		netns.Serve(t, pod, ip, "tcp", fmt.Sprint(":", namePort))
	}
	s.sink = serve(t, s.pods[podB])
	// kube-proxy would write a second table for IPv6, of which ours knows nothing here.
	testenv.NoError(t, s.ns.Do(func() error {
		netns.Sysctl(t, "ipv4/ip_forward=1", "ipv6/conf/all/disable_ipv6=1")
		return netns.AddAddress("lo", nodeIP+"/32")
	}))
	return s
}

// with gives the side an API with these objects.
func (s *side) with(objects []runtime.Object) {
	s.api = watchapi.New(
		&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDR: "10.42.0.0/24", PodCIDRs: []string{"10.42.0.0/24"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeIP}}},
		},
		&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{serviceCIDR.String()}}},
	)
	for _, o := range objects {
		s.api.Put(o.DeepCopyObject())
	}
	s.url = s.api.Serve(s.t, s.ns)
}

// start runs the side's proxy, and returns how long it takes until all rules are in the kernel.
func (s *side) start(kubeProxy string) time.Duration {
	s.t.Helper()
	began := time.Now()
	if kubeProxy != "" {
		s.proc = startKubeProxy(s.t, s.ns, kubeProxy, s.url, metrics)
	} else {
		s.proc = startNode(s.t, s.ns, nodeConfig{API: s.url, Name: "n1", Dir: s.t.TempDir(), IP: netip.MustParseAddr(nodeIP), Services: true, Metrics: metrics})
	}
	eventually(s.t, s.name+" has written everything", func() error {
		n, err := s.proc.scrape(metrics, "kubeproxy_sync_full_proxy_rules_duration_seconds_count")
		if err == nil && n == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	return time.Since(began)
}

func clusterIP(i int) string { return fmt.Sprintf("10.96.%d.%d", 1+i/250, 1+i%250) }

// service is the i-th: port 80 leads to namePort, 81 to the echo.
func service(i int) *corev1.Service {
	return services.New(fmt.Sprint("s", i), []string{clusterIP(i)},
		corev1.ServicePort{Name: "name", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(namePort)})
}

func slice(i int, port int32, ips ...string) *discoveryv1.EndpointSlice {
	name, proto, ready := "name", corev1.ProtocolTCP, true
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("s", i, "-1"), Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprint("s", i)}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	for _, ip := range ips {
		node := "n1"
		if ip != podA && ip != podB {
			node = "n2"
		}
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready}})
	}
	return out
}

// crowd are n Services of one port with three endpoints elsewhere. The last leads to pod B's echo.
func crowd(n int) []runtime.Object {
	var out []runtime.Object
	for i := range n - 1 {
		at := func(k int) string { return fmt.Sprintf("10.42.%d.%d", 1+(3*i+k)/250%250, 1+(3*i+k)%250) }
		out = append(out, service(i), slice(i, namePort, at(0), at(1), at(2)))
	}
	return append(out, service(n-1), slice(n-1, echoPort, podB))
}

// TestServices measures both proxies: how fast changes arrive in the kernel, what they take of the machine, and
// connections through what they write.
func TestServices(t *testing.T) {
	netns.RequireNFT(t)
	program := built(t, "kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy")
	for _, n := range pick([]int{100, 1000, 5000}, []int{100, 1000}) {
		t.Run(fmt.Sprint(n), func(t *testing.T) { benchServices(t, program, n) })
	}
}

func benchServices(t *testing.T, program string, n int) {
	objects := crowd(n)
	sides := []*side{newSide(t, "coracle"), newSide(t, "kube-proxy")}
	var first []sample
	for i, s := range sides {
		s.with(objects)
		took := s.start(map[int]string{1: program}[i])
		full := testenv.Must(s.proc.scrape(metrics, "kubeproxy_sync_full_proxy_rules_duration_seconds_sum"))(t)
		first = append(first, sample{"start to served, s": took.Seconds(), "of that the sync, s": full, "CPU s": s.proc.cpu().Seconds()})
	}
	for _, s := range sides {
		testenv.Must(settled(s.ns, 3*time.Second))(t)
	}
	changes := pick(30, 5)
	got := changed(t, sides, changes)
	window := pick(20*time.Second, 3*time.Second)
	var variants []variant
	for i, s := range sides {
		variants = append(variants, variant{s.name, func() (sample, error) {
			out := first[i]
			maps.Copy(out, got[i])
			cpu := s.proc.cpu()
			time.Sleep(window) // idle means idle: nothing changes meanwhile
			out["idle CPU ms/s"] = milliseconds(s.proc.cpu()-cpu) / window.Seconds()
			out["anon MB"], out["peak MB"] = s.proc.anonMB(), s.proc.peakMB()
			return out, nil
		}})
	}
	compare(t, fmt.Sprintf("%d Services; %d changes of one endpoint, in turns", n, changes), 1, []column{
		{name: "start to served, s", format: "%.2f"}, {name: "of that the sync, s", format: "%.2f"}, {name: "CPU s", format: "%.2f", ratio: true},
		{name: "change p50 ms", ratio: true}, {name: "p99 ms"}, {name: "CPU ms/change", ratio: true}, {name: "of that nft"},
		{name: "idle CPU ms/s", format: "%.2f"}, {name: "anon MB", ratio: true}, {name: "peak MB", format: "%.0f"},
	}, variants)
	benchRequests(t, sides, n)
}

// changed moves endpoints on both sides in turns, and looks each time whether the Service follows.
func changed(t *testing.T, sides []*side, changes int) []sample {
	took, cpu, nft := make([][]float64, len(sides)), make([]time.Duration, len(sides)), make([]time.Duration, len(sides))
	wrong := 0
	for k := range changes {
		pod := []string{podA, podB}[k%2]
		for i, s := range sides {
			before, beforeNFT := s.proc.cpu(), s.proc.children()
			d, err := untilWritten(s.ns, func() { s.api.Put(slice(0, namePort, pod)) })
			testenv.NoError(t, err, "%s", s.name)
			took[i] = append(took[i], milliseconds(d))
			if got, err := netns.Ask(s.pods[podA], clusterIP(0)+":80"); err != nil || len(got) < len(pod) || got[:len(pod)] != pod {
				wrong++
				t.Logf("%s: after its change the Service leads to %q, %v", s.name, got, err)
			}
			testenv.Must(settled(s.ns, 1200*time.Millisecond))(t)
			cpu[i] += s.proc.cpu() - before
			nft[i] += s.proc.children() - beforeNFT
		}
	}
	testenv.False(t, wrong > 0, "after %d of %d changes the Service did not lead where it should", wrong, changes*len(sides))
	var out []sample
	for i := range sides {
		out = append(out, sample{
			"change p50 ms": quantile(took[i], 0.5), "p99 ms": quantile(took[i], 0.99), "CPU ms/change": milliseconds(cpu[i]) / float64(changes),
			"of that nft": milliseconds(nft[i]) / float64(changes),
		})
	}
	return out
}

// benchRequests sends load from pod A to pod B, past the Service and through it.
func benchRequests(t *testing.T, sides []*side, n int) {
	window := pick(2*time.Second, 300*time.Millisecond)
	var variants []variant
	for _, s := range sides {
		for _, through := range []string{"direct", "through a Service"} {
			r, port := route{from: s.pods[podA], to: netip.MustParseAddr(podB), sink: s.sink}, uint16(echoPort)
			if through != "direct" {
				r.to, port = netip.MustParseAddr(clusterIP(n-1)), 80
			}
			variants = append(variants, variant{s.name + "'s node, " + through, func() (sample, error) {
				out := sample{}
				got, err := r.pingPong(unix.SOCK_STREAM, port, 4, window)
				prefixed("request", got, out)
				if err == nil {
					got, err = r.connect(port, 4, window)
					prefixed("new", got, out)
				}
				return out, err
			}})
		}
	}
	compare(t, fmt.Sprintf("Requests of 64 bytes on four connections, and new connections by four clients, among %d Services", n), pick(5, 1), []column{
		{name: "request /s", format: "%.0f", ratio: true}, {name: "request CPU µs", ratio: true}, {name: "request p99 µs", format: "%.0f"},
		{name: "new /s", format: "%.0f", ratio: true}, {name: "new CPU µs", ratio: true}, {name: "new p99 µs", format: "%.0f"},
	}, variants)
}
