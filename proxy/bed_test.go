// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/proxy"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/services"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/watchapi"
)

const (
	nodeAddr    = netns.NodeIP
	outsideAddr = netns.OutsideIP
	clusterIP   = "10.43.0.9"
)

// testbed is a node (the process's own namespace) with two pods and a machine outside, and what serves Services there:
// a Proxy, or upstream's kube-proxy.
type testbed struct {
	outside *netns.NS
	pods    map[string]*netns.NS // by address
	api     *watchapi.API
	url     string       // of api
	proxy   *proxy.Proxy // not with kube-proxy
	record  string
	mode    string
	stop    func()
	asked   []string // differences that the case has asked for

	protocol corev1.Protocol      // of endpoints; empty is TCP
	options  func(*proxy.Options) // changes what the proxy is made with
	port     int32                // of endpoints; zero is 8080
}

func newTestbed(t *testing.T, mode string) *testbed {
	t.Helper()
	netns.RequireNFT(t)
	b := &testbed{mode: mode, outside: netns.NewOutside(t), pods: netns.NewPods(t), record: filepath.Join(t.TempDir(), "service-proxy")}
	for ip, ns := range b.pods {
		netns.Serve(t, ns, ip, "tcp", ":8080")
	}
	netns.Route(t, b.outside, nodeAddr, "10.43.0.0/16")
	netns.Route(t, here{}, outsideAddr, "0.0.0.0/0") // without a route the node's own packets meet no rule
	b.api = watchapi.New(
		bedNode("east"),
		&networkingv1.ServiceCIDR{
			ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
			Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16"}},
		},
	)
	b.start(t)
	t.Cleanup(func() {
		b.stop()
		b.sayDifferences(t)
		b.removeRules(t)
		if out := netns.NFT(t, "list tables"); strings.Contains(out, "kube-proxy") || strings.Contains(out, "coracle-ipvs") {
			t.Errorf("tables are left: %s", out)
		}
	})
	return b
}

func (b *testbed) clusterCIDR() string { return "10.42.0.0/16" }

func (b *testbed) removeRules(t *testing.T) {
	if b.mode == kubeProxy {
		netns.NFT(t, "add table ip kube-proxy; add table ip6 kube-proxy; delete table ip kube-proxy; delete table ip6 kube-proxy")
		return
	}
	testenv.Equal(t, testenv.Must(nft.RemoveServiceRules(b.record))(t), b.mode, "removed")
}

// start has Services served until b.stop.
func (b *testbed) start(t *testing.T) {
	t.Helper()
	if b.url == "" {
		b.url = b.api.Serve(t, here{})
	}
	if b.mode == kubeProxy {
		b.startKubeProxy(t)
		return
	}
	o := proxy.TestOptions(b.record)
	o.Mode = b.mode
	if b.options != nil {
		b.options(&o)
	}
	p, stop := proxy.StartTestProxy(t, b.url, o)
	b.proxy = p
	b.stop = func() {
		stop()
		b.stop = func() {}
	}
}

func (b *testbed) service(t *testing.T, change func(*corev1.Service)) {
	t.Helper()
	svc := services.New("web", []string{clusterIP}, corev1.ServicePort{
		Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080), NodePort: 30080,
	})
	svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyCluster
	if change != nil {
		change(svc)
	}
	b.api.Put(svc)
}

func (b *testbed) removeService() {
	b.api.Remove(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}})
}

func (b *testbed) endpoints(t *testing.T, ips ...string) {
	t.Helper()
	b.endpointsOn(t, "n1", ips...)
}

func (b *testbed) endpointsOn(t *testing.T, node string, ips ...string) {
	t.Helper()
	b.api.Put(b.sliceOn(node, ips...))
}

func (b *testbed) sliceOn(node string, ips ...string) *discoveryv1.EndpointSlice {
	web := services.New("web", nil, corev1.ServicePort{Name: "http", Protocol: cmp.Or(b.protocol, corev1.ProtocolTCP)})
	return services.Slice(web, node, cmp.Or(b.port, 8080), ips...)
}

// here is the node's own namespace.
type here = netns.Own

// ask returns who answers, and the address that it sees.
func ask(from netns.Doer, addr string) (server, peer string, err error) {
	answer, err := netns.Ask(from, addr)
	server, peer, _ = strings.Cut(answer, " ")
	return server, peer, err
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, what, f)
}

func reaches(t *testing.T, ns netns.Doer, what, addr string) {
	t.Helper()
	eventually(t, what+" ("+addr+")", func() error { _, _, err := ask(ns, addr); return err })
}

func fails(t *testing.T, ns netns.Doer, what, addr string) {
	t.Helper()
	eventually(t, what+" ("+addr+")", func() error {
		if _, _, err := ask(ns, addr); err == nil {
			return fmt.Errorf("still answers")
		}
		return nil
	})
}
