// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// many tells the API of Services with endpoints, of which every tenth is headless.
func (a *api) many(services, endpoints int) {
	ready := true
	for i := range services {
		name, node := fmt.Sprintf("service-%d", i), fmt.Sprintf("node-%d", i%10)
		labels := map[string]string{"app.kubernetes.io/name": name, "app.kubernetes.io/instance": name}
		meta := func(name string) metav1.ObjectMeta {
			return metav1.ObjectMeta{
				Namespace: "default", Name: name, UID: "7a6c2a35-3d0c-4a0c-9c55-3d0c4a0c9c55", Labels: map[string]string{},
				Annotations:   map[string]string{"example.org/checksum": "7a6c2a35-3d0c-4a0c-9c55-3d0c4a0c9c55"},
				ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "helm", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:ports":{},"f:selector":{}}}`)}},
			}
		}
		ip := fmt.Sprintf("10.43.%d.%d", i/250, i%250+1)
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: meta(name + "-x7k2p"), AddressType: discoveryv1.AddressTypeIPv4,
		}
		if i%10 == 0 {
			ip, slice.Labels[corev1.IsHeadlessService] = corev1.ClusterIPNone, ""
		}
		service := &corev1.Service{ObjectMeta: meta(name), Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Selector: labels, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		}}
		slice.Labels[discoveryv1.LabelServiceName], slice.Labels[discoveryv1.LabelManagedBy] = name, "endpointslice-controller.k8s.io"
		for key, value := range labels {
			service.Labels[key], slice.Labels[key] = value, value
		}
		port, portName, proto := int32(8080), "http", corev1.ProtocolTCP
		slice.Ports = []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}}
		for j := range endpoints {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 64+j, i/250, i%250+1)}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: name + "-5b8f9c7d6-x7k2p", UID: "7a6c2a35-3d0c-4a0c-9c55-3d0c4a0c9c55"},
			})
		}
		a.Put(service, slice)
	}
}

// BenchmarkSearchList is what a pod's search list costs: with ndots:5 each name from outside is asked for in three
// places of the cluster before, where it is not. A question is for both families, and the client's own work counts.
func BenchmarkSearchList(b *testing.B) {
	a := newAPI(b)
	a.namespace(b, "default")
	a.many(1000, 3)
	outside(b, "127.0.0.51:53", "192.0.2.9")
	run(b, a, func(o *Options) {
		testenv.NoError(b, os.WriteFile(o.ResolvConf, []byte("nameserver 127.0.0.51\n"), 0o644))
	})
	const name = "web.outside.example."
	testenv.Eventually(b, 2*time.Minute, "names are found", func() error {
		for _, n := range []string{name, "service-999.default.svc.cluster.local."} {
			if got, rcode, err := query("udp", n, dns.TypeA); err != nil || len(got) == 0 {
				return fmt.Errorf("%s: %s, %w", n, rcode, err)
			}
		}
		return nil
	})
	conn := testenv.Must(dns.Dial("udp", net.JoinHostPort(listenAddr, fmt.Sprint(Port))))(b)
	defer conn.Close()
	ask := func(b *testing.B, name string, want int) {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			testenv.NoError(b, conn.WriteMsg(new(dns.Msg).SetQuestion(name, kind)))
			r, err := conn.ReadMsg()
			testenv.Require(b, err == nil && r.Rcode == want, "%s: %v, %v", name, r, err)
		}
	}
	for _, c := range []struct {
		what  string
		names []string
		want  int
	}{
		{"the name itself, from the cache", []string{name}, dns.RcodeSuccess},
		{"the three before it", []string{name + "default.svc.cluster.local.", name + "svc.cluster.local.", name + "cluster.local."}, dns.RcodeNameError},
	} {
		b.Run(c.what, func(b *testing.B) {
			began := processorTime(b)
			for b.Loop() {
				for _, n := range c.names {
					ask(b, n, c.want)
				}
			}
			b.ReportMetric(float64((processorTime(b)-began).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	testenv.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
