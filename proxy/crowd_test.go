// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/services"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// testPoolAddress is about a load balancer's address in the LAN of the nodes. The node serves what is sent to it, but
// does not say that the address is its own: only who announces it may.
func testPoolAddress(t *testing.T, mode string) {
	const pooled = "192.0.2.50"
	b := newTestbed(t, mode)
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Status.LoadBalancer.Ingress[0].IP = pooled
	})
	b.endpoints(t, "10.42.0.2", "10.42.0.6")
	reaches(t, b.pods["10.42.0.2"], "a pod", pooled+":80")
	reaches(t, here{}, "the node", pooled+":80")
	if got, _, err := ask(b.outside, pooled+":80"); err == nil {
		t.Errorf("no node announces the address, and %s answers", got)
	}
	node, err := netlink.LinkByName("uplink")
	testenv.NoError(t, err)
	err = b.outside.Do(func() error { // the speaker's answer
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: eth0.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
			IP: net.ParseIP(pooled), HardwareAddr: node.Attrs().HardwareAddr,
		})
	})
	testenv.NoError(t, err)
	reaches(t, b.outside, "when it is announced", pooled+":80")
}

// serveLong answers on port 9090 for as long as a client speaks.
func serveLong(t *testing.T, in netns.Doer, name string) { netns.Echo(t, in, name, "tcp", ":9090") }

// echoName is the name with which the other end of a connection replies.
func echoName(c net.Conn) (string, error) { return netns.Say(c, time.Minute) }

func testLongConnection(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	for ip, ns := range b.pods {
		serveLong(t, ns, ip)
	}
	b.port = 9090
	b.service(t, nil)
	b.endpoints(t, "10.42.0.2", "10.42.0.6")
	open := func(from netns.Doer) (c net.Conn, who string) {
		t.Helper()
		eventually(t, "a connection", func() error {
			return from.Do(func() (err error) {
				if c, err = net.DialTimeout("tcp", clusterIP+":80", time.Minute); err != nil {
					return err
				}
				who, err = echoName(c)
				if err != nil {
					c.Close()
				}
				return err
			})
		})
		return c, who
	}
	for _, from := range []netns.Doer{b.outside, here{}} {
		b.endpoints(t, "10.42.0.2", "10.42.0.6")
		c, who := open(from)
		other := map[string]string{"10.42.0.2": "10.42.0.6", "10.42.0.6": "10.42.0.2"}[who]
		b.endpoints(t, other)
		eventually(t, "new connections go to the endpoint that is left", func() error {
			for range 10 {
				n, got := open(from)
				n.Close()
				if got != other {
					return fmt.Errorf("one goes to %s", got)
				}
			}
			return nil
		})
		for range 3 {
			if got, err := echoName(c); err != nil || got != who {
				t.Errorf("the open connection: %q answers, %v; want %s", got, err, who)
			}
		}
		c.Close()
	}
}

// testThousands has so many Services that what grows with their number would be seen, and a few connections through
// them.
func testThousands(t *testing.T, mode string) {
	const number = 2000
	b := newTestbed(t, mode)
	b.stop()
	ip := func(i int) string { return fmt.Sprintf("10.43.%d.%d", 1+i/200, 1+i%200) }
	for i := range number {
		s, slice := crowded(i, ip(i))
		b.api.Put(s, slice)
	}
	b.start(t)
	if mode != kubeProxy {
		testenv.Eventually(t, 10*time.Minute, "all Services are served", func() error { // a second kernel is slow
			if h := b.proxy.Health(); !h.Synced {
				return fmt.Errorf("not yet, %w", cmp.Or(h.Err, errors.New("without an error")))
			}
			return nil
		})
		t.Logf("%d Services, all at once: %v", number, b.proxy.Health().LastDuration)
	}
	for i := 0; i < number; i += number / 20 {
		reaches(t, b.outside, "one of many", ip(i)+":80")
		reaches(t, b.pods["10.42.0.2"], "one of many", ip(number-1-i)+":80")
	}
	_, slice := crowded(number/2, ip(number/2))
	slice.Endpoints = slice.Endpoints[:1]
	b.api.Put(slice)
	eventually(t, "one of many has one endpoint less", func() error {
		for range 10 {
			if server, _, err := ask(b.outside, ip(number/2)+":80"); err != nil || server != "10.42.0.2" {
				return cmp.Or(err, fmt.Errorf("%s answers", server))
			}
		}
		return nil
	})
	reaches(t, b.outside, "its neighbour", ip(number/2+1)+":80")
}

// crowded is one of many, with both pods as endpoints.
func crowded(i int, ip string) (*corev1.Service, *discoveryv1.EndpointSlice) {
	s := services.New(fmt.Sprint("s", i), []string{ip},
		corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080)})
	return s, services.Slice(s, "n1", 8080, netns.PodIPs...)
}
