// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/proxy"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/uml"
)

// serviceCase is something that a Service does.
type serviceCase struct {
	name string
	run  func(t *testing.T, mode string)
}

// cases hold in both modes, and with kube-proxy: what a Service means is the same, but for what differences lists.
var cases = []serviceCase{
	{"addresses and node ports", testServices},
	{"affinity", testSessionAffinity},
	{"another program flushes the rules", testFlushedRulesetHeals},
	{"external IPs and load balancer addresses", testExternal},
	{"source ranges", testSourceRanges},
	{"external policy Local", testExternalLocal},
	{"no endpoints", testNoEndpoints},
	{"datagrams find another endpoint (kubernetes 71514)", testDatagrams},
	{"host ports are not to be had at a Service (kubernetes 72236)", testHostPorts},
	{"a node's address stays the node's (kubernetes 127410)", testNodesAddress},
	{"an endpoint goes and comes back (kubernetes 92019)", testComesBack},
	{"a port that is used again (kubernetes 81775)", testPortReuse},
	{"an address of a pool", testPoolAddress},
	{"a long connection outlives its endpoint's place", testLongConnection},
	{"two thousand Services", testThousands},
	{"where a policy meets a packet", testPolicyHooks},
	{"which endpoints are used", testConditions},
	{"an endpoint here is on its way out", testTerminatingHere},
	{"hints", testHints},
	{"the node comes to another zone", testNodesZone},
	{"internal policy Local", testInternalLocal},
	{"both policies Local", testBothLocal},
	{"endpoints in several slices", testSlices},
	{"affinity ends", testAffinityEnds},
	{"affinity and an endpoint that goes", testAffinityMoves},
	{"a load balancer's address that is another node's", testOthersNode},
	{"one port number, two protocols", testTwoProtocols},
	{"datagrams before the first endpoint", testEarlyDatagrams},
	{"a Service changes", testServiceChanges},
	{"a Service goes while a connection is open", testServiceGoes},
	{"a load balancer that answers itself", testBalancerItself},
	{"ports that a status gives at an address", testGivenPorts},
	{"a server that is away", testServerAway},
	{"a rolling update under load", testRollingUpdate},
}

// TestServiceCases runs the nftables back end and, where it has been built, upstream's kube-proxy on the machine's
// kernel, and the back end on IPVS in a guest's, which has SCTP too.
func TestServiceCases(t *testing.T) {
	all := func(mode string) func(*testing.T) {
		return func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) { c.run(t, mode) })
			}
		}
	}
	t.Run("nftables", all(proxy.ModeNFTables))
	t.Run("kube-proxy", func(t *testing.T) {
		requireKubeProxy(t)
		all(kubeProxy)(t)
	})
	t.Run("ipvs", func(t *testing.T) {
		if uml.Inside() {
			all(proxy.ModeIPVS)(t)
			for _, mode := range []string{proxy.ModeIPVS, proxy.ModeNFTables} {
				t.Run("SCTP with "+mode, func(t *testing.T) { testSCTP(t, mode) })
			}
			return
		}
		uml.Run(t, uml.WithNFTables(t, 40*time.Minute))
	})
}

const externalIP, balancerIP = "203.0.113.7", "203.0.113.8"

// routed is a bed in which the machine outside and the pods send Services' addresses to the node.
func routed(t *testing.T, mode string) *testbed {
	b := newTestbed(t, mode)
	netns.Route(t, b.outside, nodeAddr, "203.0.113.0/24")
	return b
}

// routeBack lets the machine outside answer pods.
func (b *testbed) routeBack(t *testing.T) {
	t.Helper()
	netns.Route(t, b.outside, nodeAddr, "10.42.0.0/16")
}

func balancer(s *corev1.Service) {
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: balancerIP}}
}

func testExternal(t *testing.T, mode string) {
	b := routed(t, mode)
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Spec.ExternalIPs = []string{externalIP, nodeAddr}
	})
	b.endpoints(t, "10.42.0.2", "10.42.0.6")
	for _, from := range []netns.Doer{b.outside, b.pods["10.42.0.2"], here{}} {
		for _, at := range []string{clusterIP + ":80", externalIP + ":80", balancerIP + ":80", nodeAddr + ":30080"} {
			reaches(t, from, "every address of the Service", at)
		}
	}
	if b.differs(t, "a node's address is served as an external IP") {
		reaches(t, b.outside, "the node's address as an external IP", nodeAddr+":80")
	} else {
		fails(t, b.outside, "the node's address as an external IP", nodeAddr+":80")
	}
}

func testSourceRanges(t *testing.T, mode string) {
	b := routed(t, mode)
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Spec.LoadBalancerSourceRanges = []string{outsideAddr + "/32"}
	})
	b.endpoints(t, "10.42.0.6")
	reaches(t, b.outside, "an allowed source", balancerIP+":80")
	netns.Silent(t, b.pods["10.42.0.2"], balancerIP+":80")
	reaches(t, b.pods["10.42.0.2"], "ranges are of the load balancer alone", clusterIP+":80")
	reaches(t, b.outside, "ranges are of the load balancer alone", nodeAddr+":30080")
}

func testExternalLocal(t *testing.T, mode string) {
	b := routed(t, mode)
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.Spec.HealthCheckNodePort = 30090
	})
	b.endpoints(t, "10.42.0.6")
	for _, at := range []string{nodeAddr + ":30080", balancerIP + ":80"} {
		reaches(t, b.outside, "an endpoint here", at)
		if _, peer := netns.Reach(t, b.outside, at); peer != outsideAddr {
			t.Errorf("%s: the client's address became %q", at, peer)
		}
		reaches(t, b.pods["10.42.0.2"], "a pod", at)
		reaches(t, here{}, "the node", at)
	}
	health := func(want string) {
		t.Helper()
		eventually(t, "the health check node port says "+want, func() error {
			return b.outside.Do(func() error {
				c, err := net.DialTimeout("tcp", nodeAddr+":30090", 10*time.Second)
				if err != nil {
					return err
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
				buf := make([]byte, 128)
				n, _ := c.Read(buf)
				if got := string(buf[:n]); !strings.Contains(got, want) {
					return fmt.Errorf("it says %q", got)
				}
				return nil
			})
		})
	}
	health("200 OK")
	if bounded := testutil.CollectAndCount(connlimit.Metrics{}, "coracle_tcp_connections_max"); bounded == 0 && mode != kubeProxy {
		t.Error("the connections of the health check node port have no bound")
	}
	b.endpointsOn(t, "n2", "10.42.0.6")
	netns.Silent(t, b.outside, nodeAddr+":30080")
	netns.Silent(t, b.outside, balancerIP+":80")
	reaches(t, b.pods["10.42.0.2"], "inside, elsewhere's endpoint does", balancerIP+":80")
	health("503")
	b.removeService()
	netns.Refused(t, b.outside, nodeAddr+":30090")
}

func testNoEndpoints(t *testing.T, mode string) {
	b := routed(t, mode)
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Spec.ExternalIPs = []string{externalIP}
	})
	b.endpoints(t)
	for _, from := range []netns.Doer{b.outside, b.pods["10.42.0.2"], here{}} {
		for _, at := range []string{clusterIP + ":80", externalIP + ":80", balancerIP + ":80", nodeAddr + ":30080"} {
			netns.Refused(t, from, at)
		}
	}
}

func testDatagrams(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	for ip, ns := range b.pods {
		netns.Echo(t, ns, ip, "udp", ":8080")
	}
	b.service(t, func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP })
	b.protocol = corev1.ProtocolUDP
	for _, from := range []netns.Doer{b.outside, here{}} {
		c := dialDatagrams(t, from, clusterIP+":80")
		for _, ip := range []string{"10.42.0.2", "10.42.0.6", "10.42.0.2"} {
			b.endpoints(t, ip)
			datagramsReach(t, c, ip)
		}
	}
}

func testHostPorts(t *testing.T, mode string) {
	b := routed(t, mode)
	netns.Serve(t, here{}, "node", "tcp", ":2222")
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Spec.ExternalIPs = []string{externalIP}
	})
	b.endpoints(t, "10.42.0.2")
	for _, from := range []netns.Doer{b.outside, b.pods["10.42.0.6"], here{}} {
		for _, at := range []string{clusterIP, externalIP, balancerIP} {
			reaches(t, from, "the Service", at+":80")
			if got, _, err := ask(from, at+":2222"); err == nil {
				t.Errorf("%s answers at port 2222 of %s", got, at)
			}
		}
		reaches(t, from, "the node's port at its own address", nodeAddr+":2222")
	}
}

func testNodesAddress(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	netns.Serve(t, here{}, "node", "tcp", ":2222")
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Status.LoadBalancer.Ingress[0].IP = nodeAddr
	})
	b.endpoints(t, "10.42.0.2")
	for _, from := range []netns.Doer{b.outside, b.pods["10.42.0.6"], here{}} {
		reaches(t, from, "the load balancer", nodeAddr+":80")
		reaches(t, from, "the node", nodeAddr+":2222")
	}
	b.removeService()
	fails(t, b.outside, "deleted Service", nodeAddr+":80")
	reaches(t, b.outside, "the node", nodeAddr+":2222")
}

func testComesBack(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, nil)
	for range 3 {
		b.endpoints(t, "10.42.0.2", "10.42.0.6")
		eventually(t, "both endpoints answer", func() error {
			seen := map[string]bool{}
			for range 40 {
				server, _, err := ask(b.outside, clusterIP+":80")
				if err != nil {
					return err
				}
				seen[server] = true
			}
			if len(seen) != 2 {
				return fmt.Errorf("of two endpoints %v answer", seen)
			}
			return nil
		})
		b.endpoints(t, "10.42.0.6")
		eventually(t, "one endpoint answers", func() error {
			for range 10 {
				if server, _, err := ask(b.outside, clusterIP+":80"); err != nil || server != "10.42.0.6" {
					return fmt.Errorf("%q answers, %w", server, err)
				}
			}
			return nil
		})
	}
}

// testPortReuse connects from one port again and again, while the endpoint moves.
func testPortReuse(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, nil)
	for _, ip := range slices.Repeat([]string{"10.42.0.2", "10.42.0.6"}, 2) {
		b.endpoints(t, ip)
		eventually(t, "a connection from the same port reaches "+ip, func() error {
			return b.outside.Do(func() error {
				d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(outsideAddr), Port: 40001}}
				c, err := d.Dial("tcp", clusterIP+":80")
				if err != nil {
					return err
				}
				defer c.Close()
				_ = c.(*net.TCPConn).SetLinger(0) // so that the port is free at once
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				buf := make([]byte, 64)
				n, err := c.Read(buf)
				if err == nil && !strings.HasPrefix(string(buf[:n]), ip+" ") {
					err = fmt.Errorf("%q answers", buf[:n])
				}
				return err
			})
		})
	}
}

// testPolicyHooks keeps what docs/adr/0021 says: a rule that forbids one pod the other meets what goes through a
// Service in the forward hook with nftables, and in output with IPVS.
func testPolicyHooks(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, nil)
	b.endpoints(t, "10.42.0.6")
	from := b.pods["10.42.0.2"]
	output := b.differs(t, "a policy meets a packet in the output hook")
	meets := map[string]bool{"forward": !output, "output": output}
	for hook, want := range meets {
		reaches(t, from, "without a policy", clusterIP+":80")
		netns.NFT(t, "add table ip judge; add chain ip judge "+hook+" { type filter hook "+hook+" priority 0; }; "+
			"add rule ip judge "+hook+" ct state established accept; add rule ip judge "+hook+" ip saddr 10.42.0.2 ip daddr 10.42.0.6 tcp dport 8080 drop")
		if want {
			netns.Silent(t, from, clusterIP+":80")
		} else {
			reaches(t, from, "the hook "+hook+" does not see it", clusterIP+":80")
		}
		reaches(t, b.outside, "others", clusterIP+":80")
		netns.NFT(t, "delete table ip judge")
	}
}
