// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func (k *supervisor) http3URL() string {
	return fmt.Sprintf("https://127.0.0.1:%d/", k.sockets.ports()[table.QUIC])
}

// http3Client is one of HTTP/3 alone, with connections that end with the test.
func http3Client(t *testing.T) *http.Client {
	tr := &http3.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		QUICConfig:      &quic.Config{HandshakeIdleTimeout: 2 * time.Minute}, // it is five seconds otherwise
	}
	t.Cleanup(func() { _ = tr.Close() })
	return &http.Client{Transport: tr, Timeout: 2 * time.Minute}
}

// newHTTP3Node is a node whose Service has the port of HTTP/3.
func newHTTP3Node(t *testing.T) *testNode {
	t.Helper()
	n := newTestNode(t)
	n.http3 = true
	testenv.NoError(t, n.table.Put(table.HTTP3Key(table.SiteIngress), table.HTTP3{Port: 443, Key: make([]byte, quicKeyBytes)}))
	return n
}

// TestUpgradesFailNoHTTP3Request: clients ask on fresh connections and on those that they keep.
func TestUpgradesFailNoHTTP3Request(t *testing.T) {
	n := newHTTP3Node(t)
	k := n.run()
	url := k.http3URL()
	var clients []*http.Client
	for range 8 {
		clients = append(clients, http3Client(t))
	}
	n.upgrade(k, (*supervisor).http3URL, func(i int) error {
		if i%2 == 0 {
			defer clients[i].CloseIdleConnections()
		}
		return ask(clients[i], url)
	}, func(k *supervisor) {
		eventually(t, "the old one has ended", func() bool { return slices.Equal(n.processes(), []int{k.current.PID}) })
	})
}

// TestRequestsOfHTTP3EndAfterTheTakeOver: packets of connections of the process that drains come to it, and those of
// new ones to the next process.
func TestRequestsOfHTTP3EndAfterTheTakeOver(t *testing.T) {
	n := newHTTP3Node(t)
	arrived, release := make(chan struct{}, 8), make(chan struct{})
	l := testenv.Must(net.Listen("tcp", machineIP+":0"))(t)
	const size = 4 << 20 // what needs acknowledgements
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		_, _ = w.Write(make([]byte, size))
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	address, hello := l.Addr().String(), n.table
	n.table = n.to(address)
	testenv.NoError(t, n.table.Put(table.HTTP3Key(table.SiteIngress), table.HTTP3{Port: 443}))
	k := n.run()
	old := k.current.PID
	answers := make(chan error, 8) // one of each request
	for range 8 {
		c := http3Client(t)
		go func() {
			res, err := c.Get(k.http3URL())
			if err != nil {
				answers <- err
				return
			}
			defer res.Body.Close()
			if got, err := io.Copy(io.Discard, res.Body); err != nil || got != size {
				answers <- fmt.Errorf("%d bytes, %w", got, err)
				return
			}
			answers <- nil
		}()
	}
	for range 8 {
		<-arrived
	}
	n.table = hello
	n.install("next")
	n.serve(k)
	testenv.Require(t, k.current.PID != old, "no other has taken over")
	for range 8 {
		testenv.Check(t, ask(http3Client(t), k.http3URL()), "a request to the next process")
	}
	close(release)
	for range 8 {
		testenv.Check(t, <-answers, "a request to the process that drains")
	}
	eventually(t, "the old one has ended", func() bool { return slices.Equal(n.processes(), []int{k.current.PID}) })
}

// TestHTTP3FollowsTheServicesPort: it is served and announced while the Service has the port, and a process without
// takes over when it has gone.
func TestHTTP3FollowsTheServicesPort(t *testing.T) {
	netns.RequireNFT(t)
	n := newTestNode(t)
	n.o.NodeIPs = []netip.Addr{netip.MustParseAddr(machineIP)}
	n.table = table.Sections{}
	testenv.NoError(t,
		n.table.Put(table.HostKey(table.SiteIngress, ""), table.Host{Routes: []table.Route{{Path: "/", Kind: table.PathPrefix}}}))
	a := startAgent(n)
	change := func(ports ...corev1.ServicePort) {
		svc := testenv.Must(a.client.CoreV1().Services(metav1.NamespaceSystem).Get(t.Context(), table.Service, metav1.GetOptions{}))(t)
		svc.Spec.Ports = ports
		testenv.Must(a.client.CoreV1().Services(metav1.NamespaceSystem).Update(t.Context(), svc, metav1.UpdateOptions{}))(t)
	}
	announced := func() string {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, Timeout: 2 * time.Minute}
		res := testenv.Must(c.Get(fmt.Sprintf("https://%s:%d/", machineIP, table.NodeHTTPSPort)))(t)
		_ = res.Body.Close()
		return res.Header.Get("Alt-Svc")
	}
	eventually(t, "the node says where it serves", func() bool { return a.annotation() == "http=10054,https=10055" })
	testenv.Equal(t, announced(), "", "without the port it is announced:")
	change(corev1.ServicePort{Name: table.QUIC, Port: 8443, Protocol: corev1.ProtocolUDP})
	eventually(t, "the node serves HTTP/3", func() bool { return a.annotation() == "http=10054,http3=10055,https=10055" })
	if got := announced(); !strings.HasPrefix(got, `h3=":8443"`) {
		t.Errorf("it is announced as %q", got)
	}
	res := testenv.Must(http3Client(t).Get(fmt.Sprintf("https://%s:%d/", machineIP, table.NodeHTTPSPort)))(t)
	_ = res.Body.Close()
	testenv.False(t, res.StatusCode != http.StatusServiceUnavailable || res.ProtoMajor != 3, "answered with %s %s", res.Proto, res.Status)
	change()
	eventually(t, "the node serves HTTP/3 no more", func() bool { return a.annotation() == "http=10054,https=10055" })
	testenv.Equal(t, announced(), "", "when the port has gone it is announced:")
}

// TestPortOfHTTP3IsTaken: another one is used, as for TCP.
func TestPortOfHTTP3IsTaken(t *testing.T) {
	other := testenv.Must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: table.NodeHTTPSPort}))(t)
	defer other.Close()
	n := newHTTP3Node(t)
	k := n.run()
	if port := k.sockets.ports()[table.QUIC]; port == 0 || port == table.NodeHTTPSPort {
		t.Errorf("it has the port %d", port)
	}
	testenv.Check(t, ask(http3Client(t), k.http3URL()))
	url := k.http3URL()
	n.install("next")
	n.serve(k)
	testenv.Equal(t, k.http3URL(), url, "the next one serves at")
}

// TestHTTP3AtBothFamilies: a node has sockets at its addresses of both families, at one port.
func TestHTTP3AtBothFamilies(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		d := testenv.Must(openQUIC(netip.AddrPortFrom(netip.MustParseAddr(ip), 0), 0))(t)
		at, err := unix.Getsockname(d)
		testenv.Check(t, err)
		if _, v4 := at.(*unix.SockaddrInet4); v4 != (ip == "127.0.0.1") {
			t.Errorf("the socket at %s is at %v", ip, at)
		}
		testenv.Check(t, unix.Close(d))
	}
}
