// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Cases of what becomes of a Service, and of its ports.

// askDatagram sends one through a socket, and returns who answers.
func askDatagram(c net.Conn) (string, error) { return netns.Say(c, time.Second) }

func dialDatagrams(t *testing.T, from netns.Doer, addr string) (c net.Conn) {
	t.Helper()
	testenv.NoError(t, from.Do(func() (err error) { c, err = net.Dial("udp", addr); return err }))
	t.Cleanup(func() { c.Close() })
	return c
}

func datagramsReach(t *testing.T, c net.Conn, want string) {
	t.Helper()
	eventually(t, "datagrams to "+c.RemoteAddr().String()+" reach "+want, func() error {
		server, err := askDatagram(c)
		if err == nil && server != want {
			err = fmt.Errorf("%s answers", server)
		}
		return err
	})
}

func testTwoProtocols(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	for ip, ns := range b.pods {
		netns.Echo(t, ns, "udp:"+ip, "udp", ":8080")
	}
	b.service(t, func(s *corev1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80, TargetPort: intstr.FromInt32(8080), NodePort: 30080})
	})
	b.endpoints(t, one)
	datagrams := b.sliceOn("n1", two)
	datagrams.Name, datagrams.Ports[0].Name, datagrams.Ports[0].Protocol = "web-udp", ptr.To("udp"), ptr.To(corev1.ProtocolUDP)
	b.api.Put(datagrams)
	for _, addr := range []string{clusterIP + ":80", nodeAddr + ":30080"} {
		only(t, b.outside, addr, one)
		datagramsReach(t, dialDatagrams(t, b.outside, addr), "udp:"+two)
	}
	b.endpoints(t)
	netns.Refused(t, b.outside, clusterIP+":80")
	datagramsReach(t, dialDatagrams(t, b.outside, clusterIP+":80"), "udp:"+two)
}

// testSCTP has a Service with a port of SCTP, which the machine's own kernel may lack.
func testSCTP(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	for ip, ns := range b.pods {
		netns.ServeSCTP(t, ns, "sctp-"+ip, netip.AddrPortFrom(netip.MustParseAddr(ip), 8080))
	}
	b.protocol = corev1.ProtocolSCTP
	b.service(t, func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP })
	for _, endpoint := range []string{one, two} {
		b.endpoints(t, endpoint)
		for from, ns := range map[string]netns.Doer{"outside": b.outside, "a pod": b.pods[two], "the node": netns.Own{}} {
			for _, addr := range []string{clusterIP + ":80", nodeAddr + ":30080"} {
				eventually(t, fmt.Sprintf("%s reaches %s at %s", from, endpoint, addr), func() error {
					answer, err := netns.AskSCTP(ns, netip.MustParseAddrPort(addr))
					if server, _, _ := strings.Cut(answer, " "); err == nil && server != "sctp-"+endpoint {
						err = fmt.Errorf("%q answers", answer)
					}
					return err
				})
			}
		}
	}
}

// testEarlyDatagrams sends with one socket all along: to a Service that is not there yet, that has no endpoint yet, and
// that has one.
func testEarlyDatagrams(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	netns.Echo(t, b.pods[one], one, "udp", ":8080")
	c := dialDatagrams(t, b.pods[two], clusterIP+":80")
	if server, err := askDatagram(c); err == nil {
		t.Errorf("%s answers, and there is no Service", server)
	}
	b.protocol = corev1.ProtocolUDP
	b.service(t, func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP })
	b.endpoints(t)
	if server, err := askDatagram(c); err == nil {
		t.Errorf("%s answers, and there is no endpoint", server)
	}
	b.endpoints(t, one)
	datagramsReach(t, c, one)
}

// testServiceChanges has a Service get other ports and another type.
func testServiceChanges(t *testing.T, mode string) {
	b := routed(t, mode)
	b.endpoints(t, one)
	b.service(t, nil)
	reaches(t, b.outside, "the port", clusterIP+":80")
	b.service(t, func(s *corev1.Service) { s.Spec.Ports[0].Port, s.Spec.Ports[0].NodePort = 81, 30081 })
	reaches(t, b.outside, "the new port", clusterIP+":81")
	reaches(t, b.outside, "the new node port", nodeAddr+":30081")
	fails(t, b.outside, "the old port", clusterIP+":80")
	fails(t, b.outside, "the old node port", nodeAddr+":30080")
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Spec.AllocateLoadBalancerNodePorts, s.Spec.Ports[0].NodePort = ptr.To(false), 0
		s.Spec.ExternalIPs = []string{externalIP}
	})
	reaches(t, b.outside, "a load balancer without node ports", balancerIP+":80")
	reaches(t, b.outside, "an external IP", externalIP+":80")
	fails(t, b.outside, "a node port", nodeAddr+":30081")
	b.service(t, func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeClusterIP, 0 })
	fails(t, b.outside, "what was the load balancer's", balancerIP+":80")
	fails(t, b.outside, "what was an external IP", externalIP+":80")
	reaches(t, b.outside, "the cluster IP", clusterIP+":80")
	b.service(t, func(s *corev1.Service) {
		s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: corev1.ClusterIPNone, ClusterIPs: []string{corev1.ClusterIPNone}, Ports: s.Spec.Ports}
	})
	fails(t, b.outside, "a Service without an address", clusterIP+":80")
}

// testServiceGoes has a connection open while the Service goes.
func testServiceGoes(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	serveLong(t, b.pods[one], one)
	b.port = 9090
	b.service(t, nil)
	b.endpoints(t, one)
	c := openLong(t, b.outside, clusterIP+":80", one)
	ends := b.differs(t, "a Service that goes ends its connections")
	testenv.False(t, ends && !remembered(t, c), "IPVS does not know the connection: nothing is tried by this")
	b.removeService()
	fails(t, b.outside, "a Service that is gone", clusterIP+":80")
	if ends {
		forgotten(t, c)
	} else if server, err := echoName(c); err != nil || server != one {
		t.Errorf("the open connection: %q answers, %v", server, err)
	}
}

// remembered says whether IPVS knows a client's connection.
func remembered(t *testing.T, c net.Conn) bool {
	t.Helper()
	known, err := os.ReadFile("/proc/thread-self/net/ip_vs_conn") // the process's first thread may have gone to a pod's namespace
	testenv.NoError(t, err)
	client := c.LocalAddr().(*net.TCPAddr)
	return strings.Contains(string(known), fmt.Sprintf(" %X %04X ", []byte(client.IP.To4()), client.Port))
}

// forgotten waits until IPVS does not know a client's connection any more, each of whose packets has it look for the
// Service. Then there is no answer.
func forgotten(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Time{})
	eventually(t, "IPVS forgets the connection", func() error {
		if _, err := c.Write([]byte("?")); err == nil && remembered(t, c) {
			return errors.New("not yet")
		}
		return nil
	})
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second)) // for silence, as in netns.Ask
	if said, _ := io.ReadAll(c); len(said) > 0 {
		t.Errorf("the open connection: %q answers", said)
	}
}

func openLong(t *testing.T, from netns.Doer, addr, want string) (c net.Conn) {
	t.Helper()
	eventually(t, "a connection", func() error {
		return from.Do(func() (err error) {
			if c, err = net.DialTimeout("tcp", addr, time.Minute); err != nil {
				return err
			}
			who, err := echoName(c)
			if err == nil && who != want {
				err = errors.New(who + " answers")
			}
			if err != nil {
				c.Close()
			}
			return err
		})
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// testBalancerItself is about a load balancer that wants to see what nodes and pods send to its address.
func testBalancerItself(t *testing.T, mode string) {
	b := routed(t, mode)
	b.routeBack(t)
	testenv.NoError(t, b.outside.Do(func() error { return netns.AddAddress("lo", balancerIP+"/32") }))
	netns.Serve(t, b.outside, "balancer", "tcp", balancerIP+":80")
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Status.LoadBalancer.Ingress[0].IPMode = ptr.To(corev1.LoadBalancerIPModeProxy)
	})
	b.endpoints(t, one)
	reaches(t, b.pods[two], "the cluster IP", clusterIP+":80")
	only(t, b.pods[two], balancerIP+":80", "balancer")
	only(t, here{}, balancerIP+":80", "balancer")
	only(t, b.outside, nodeAddr+":30080", one) // where the balancer sends
}

// testGivenPorts has a Service ask for a port on which a program of the node listens: it has it at its own address, and
// at the node's as long as the status gives all ports there. What is connected elsewhere stays.
func testGivenPorts(t *testing.T, mode string) {
	b := routed(t, mode)
	netns.Serve(t, here{}, "node", "tcp", ":2222")
	serveLong(t, b.pods[one], one)
	slice := b.sliceOn("n1", one)
	slice.Ports = nil
	for name, port := range map[string]int32{"http": 9090, "ssh": 8080, "more": 9090} {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: ptr.To(name), Port: ptr.To(port), Protocol: ptr.To(corev1.ProtocolTCP)})
	}
	b.api.Put(slice)
	given := func(ports ...int32) {
		b.service(t, func(s *corev1.Service) {
			balancer(s)
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "ssh", Protocol: corev1.ProtocolTCP, Port: 2222, TargetPort: intstr.FromInt32(8080), NodePort: 30022},
				corev1.ServicePort{Name: "more", Protocol: corev1.ProtocolTCP, Port: 81, TargetPort: intstr.FromInt32(9090), NodePort: 30081})
			at := corev1.LoadBalancerIngress{IP: nodeAddr}
			for _, p := range ports {
				at.Ports = append(at.Ports, corev1.PortStatus{Port: p, Protocol: corev1.ProtocolTCP})
			}
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, at)
		})
	}
	given(80)
	stay := []net.Conn{openLong(t, b.outside, clusterIP+":81", one), openLong(t, b.pods[two], nodeAddr+":30081", one)}
	notGiven := "node"
	if b.differs(t, "ports that the status does not give are served") {
		notGiven = one
	}
	for _, step := range []struct {
		ports []int32
		want  string
	}{{[]int32{80}, notGiven}, {[]int32{80, 2222, 81}, one}, {[]int32{80}, notGiven}, {nil, one}, {[]int32{80}, notGiven}} {
		given(step.ports...)
		for _, from := range []netns.Doer{b.outside, b.pods[two], here{}} {
			only(t, from, nodeAddr+":2222", step.want)
			for _, addr := range []string{clusterIP + ":2222", balancerIP + ":2222", nodeAddr + ":30022"} {
				only(t, from, addr, one)
			}
		}
		for _, c := range stay {
			if server, err := echoName(c); err != nil || server != one {
				t.Errorf("with %v given, what was connected to %s: %q answers, %v", step.ports, c.RemoteAddr(), server, err)
			}
		}
	}
}

// testServerAway: a server that is away, or about to join, has its address for itself, whichever Service names it, and
// is sent nothing before it is ready.
func testServerAway(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	const server = "192.0.2.3"
	testenv.NoError(t, b.outside.Do(func() error { return netns.AddAddress("eth0", server+"/24") }))
	netns.Serve(t, b.outside, "server", "tcp", server+":6443")
	b.service(t, func(s *corev1.Service) {
		s.Spec.Ports[0].Port = 6443
		s.Spec.ExternalIPs = []string{server}
	})
	b.endpoints(t, one)
	only(t, here{}, server+":6443", one)

	const virtual = "10.43.0.1"
	b.service(t, func(s *corev1.Service) {
		s.Name, s.Spec.Type, s.Spec.ClusterIP, s.Spec.ClusterIPs = "kubernetes", corev1.ServiceTypeClusterIP, virtual, []string{virtual}
		s.Spec.Ports[0].Port, s.Spec.Ports[0].NodePort = 443, 0
	})
	b.port = 6443
	slice := b.sliceOn("", server)
	slice.Name, slice.Labels[discoveryv1.LabelServiceName] = "kubernetes", "kubernetes"
	slice.Endpoints[0].NodeName = nil
	ready := func(is bool) {
		s := slice.DeepCopy()
		s.Endpoints[0].Conditions.Ready, s.Endpoints[0].Conditions.Serving = &is, &is
		b.api.Put(s)
	}
	answers := "server"
	if b.differs(t, "a server's address is served as an external IP") {
		answers = one
	}
	for _, is := range []bool{false, true, false} {
		if ready(is); is {
			only(t, here{}, virtual+":443", "server")
		} else {
			netns.Refused(t, here{}, virtual+":443")
		}
		only(t, here{}, server+":6443", answers)
	}
	b.api.Remove(slice) // the server has left
	only(t, here{}, server+":6443", one)
}
