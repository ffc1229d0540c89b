// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	upstream "k8s.io/kubernetes/pkg/proxy"
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	upstreamnft "k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/watchapi"
)

// TestSameRulesAsKubeProxy compares what is in the kernel: ours, and what upstream's proxier writes when it receives
// the same objects as kube-proxy gives it. A difference that is not listed here fails the test, and so does one that is
// listed and is none.
func TestSameRulesAsKubeProxy(t *testing.T) {
	netns.RequireNFT(t)
	seed := testenv.Seed(t)
	for _, c := range []struct {
		name     string
		services []served
		reason   string // why there is a difference; empty where there is none
	}{
		{"kinds of Services", kindsOfServices(), ""},
		{"any Services", anyServices(rand.New(rand.NewPCG(seed, 0)), 150), ""},
		{"a node's address as an external IP", oneService(func(s *corev1.Service) { s.Spec.ExternalIPs = []string{netns.NodeIP} }),
			"a user who may write Services could take the node's ports: ADR 0083"},
		{"an external IP in the network of pods", oneService(func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"10.42.0.77"} }), "it could take what goes to a pod"},
		{"an external IP in the network of Services", oneService(func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"10.43.0.77"} }), "it could take what goes to another Service"},
		{"a reserved external IP", oneService(func(s *corev1.Service) { s.Spec.ExternalIPs = []string{reservedIP} }), "it could take requests to the API"},
		{"a load balancer's address in the network of pods", oneService(func(s *corev1.Service) { ingressAt(s, "10.42.0.77") }), "it could take what goes to a pod"},
		{"a load balancer's address that is the node's, and a port on which nodes listen", oneService(func(s *corev1.Service) {
			ingressAt(s, netns.NodeIP)
			s.Spec.Ports[0].Port = reservedPort
		}), "it could take requests to the API"},
		{"a port that the status does not give at an address", oneService(func(s *corev1.Service) {
			ingressAt(s, netns.NodeIP)
			s.Status.LoadBalancer.Ingress[0].Ports = []corev1.PortStatus{{Port: s.Spec.Ports[0].Port + 1, Protocol: s.Spec.Ports[0].Protocol}}
		}), "it could take the node's ports, and other Services', until the leader has looked"},
		{"a port that the status gives", oneService(func(s *corev1.Service) {
			ingressAt(s, netns.NodeIP)
			s.Status.LoadBalancer.Ingress[0].Ports = []corev1.PortStatus{{Port: s.Spec.Ports[0].Port, Protocol: s.Spec.Ports[0].Protocol}}
		}), ""},
		{"a node port on which nodes listen", oneService(func(s *corev1.Service) {
			s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, reservedPort
		}), "it could take requests to the API"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ours, upstreams := oursRules(t, c.services), theirRules(t, c.services)
			testenv.Require(t, len(upstreams) >= 20, "upstream wrote %d objects only", len(upstreams))
			var diff []string
			for _, line := range ours {
				if !slices.Contains(upstreams, line) {
					diff = append(diff, "+ "+line)
				}
			}
			for _, line := range upstreams {
				if !slices.Contains(ours, line) {
					diff = append(diff, "- "+line)
				}
			}
			switch {
			case c.reason == "" && len(diff) > 0:
				t.Errorf("the rules differ:\n%s", strings.Join(diff[:min(len(diff), 40)], "\n"))
			case c.reason != "" && len(diff) == 0:
				t.Errorf("there is no difference any more (%s)", c.reason)
			}
		})
	}
}

const (
	nodeAddr6    = "2001:db8::1"
	reservedIP   = "192.0.2.99"
	reservedPort = 6443
)

// served is a Service with its slices.
type served struct {
	service *corev1.Service
	slices  []*discoveryv1.EndpointSlice
}

func theNode() *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "east", corev1.LabelHostname: "n1"}}}
}

var ofServices = &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16", "fd43::/112"}}}

// oursRules are what a Proxy writes.
func oursRules(t *testing.T, all []served) []string {
	t.Helper()
	objects := []runtime.Object{theNode(), ofServices.DeepCopy()}
	for _, s := range all {
		objects = append(objects, s.service.DeepCopy())
		for _, e := range s.slices {
			objects = append(objects, e.DeepCopy())
		}
	}
	o := testOptions(filepath.Join(t.TempDir(), "service-proxy"))
	o.NodeIPs = append(o.NodeIPs, netip.MustParseAddr(nodeAddr6))
	o.ClusterCIDRs = append(o.ClusterCIDRs, netip.MustParsePrefix("fd42::/56"))
	o.ServiceCIDRs = append(o.ServiceCIDRs, netip.MustParsePrefix("fd43::/112"))
	o.Reserved = Reserved{Addresses: []netip.Addr{netip.MustParseAddr(reservedIP)}, Ports: []uint16{reservedPort}}
	p, stop := startTestProxy(t, watchapi.New(objects...).Serve(t, netns.Own{}), o)
	testenv.Eventually(t, 2*time.Minute, "all is written", func() error {
		if h := p.Health(); !h.Synced || h.Err != nil {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
	stop() // which waits for what is being written
	out := dumped(t)
	testenv.Must(nft.RemoveServiceRules(o.RecordFile))(t)
	return out
}

// theirRules are what upstream's proxier writes with kube-proxy's defaults. Its loop cannot be stopped and is not
// started: telling it of the slices' end is what writes, as with kube-proxy's first sync.
func theirRules(t *testing.T, all []served) []string {
	t.Helper()
	conf := &kubeproxyconfig.KubeProxyConfiguration{
		Mode: kubeproxyconfig.ProxyModeNFTables, NodePortAddresses: []string{netns.NodeIP + "/32", nodeAddr6 + "/128"}, // "primary", its default
		SyncPeriod: metav1.Duration{Duration: 30 * time.Second}, MinSyncPeriod: metav1.Duration{Duration: time.Second},
	}
	conf.NFTables.MasqueradeBit = ptr.To[int32](14)
	ctx := klog.NewContext(t.Context(), ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true))))
	p, err := upstreamnft.NewDualStackProxier(ctx, conf, map[corev1.IPFamily]proxyutil.LocalTrafficDetector{
		corev1.IPv4Protocol: proxyutil.NewDetectLocalByCIDR("10.42.0.0/16"), corev1.IPv6Protocol: proxyutil.NewDetectLocalByCIDR("fd42::/56"),
	}, "n1", map[corev1.IPFamily]net.IP{corev1.IPv4Protocol: net.ParseIP(netns.NodeIP), corev1.IPv6Protocol: net.ParseIP(nodeAddr6)}, nil,
		healthcheck.NewProxyHealthServer("", time.Minute, nil), false)
	testenv.NoError(t, err)
	tellUpstream(p, all)
	out := dumped(t)
	for _, s := range all { // listeners of health check node ports end
		p.OnServiceDelete(s.service)
	}
	p.OnEndpointSlicesSynced()
	netns.NFT(t, "delete table ip kube-proxy; delete table ip6 kube-proxy")
	return out
}

func tellUpstream(p upstream.Provider, all []served) {
	p.OnTopologyChange(map[string]string{corev1.LabelTopologyZone: "east", corev1.LabelHostname: "n1"})
	p.OnServiceCIDRsChanged(ofServices.Spec.CIDRs)
	for _, s := range all {
		p.OnServiceAdd(s.service)
		for _, e := range s.slices {
			p.OnEndpointSliceAdd(e)
		}
	}
	p.OnServiceSynced()
	p.OnEndpointSlicesSynced()
}

// dumped are the two tables, a line for each chain with its rules in their order, each set, and each element.
func dumped(t *testing.T) []string {
	t.Helper()
	var out []string
	rules := map[string][]string{}
	for _, family := range []string{"ip", "ip6"} {
		var all struct{ Nftables []map[string]map[string]any }
		testenv.NoError(t, json.Unmarshal([]byte(netns.NFT(t, "-j", "list table "+family+" kube-proxy")), &all))
		for _, entry := range all.Nftables {
			for kind, o := range entry {
				delete(o, "handle")
				switch kind {
				case "metainfo":
				case "rule":
					chain := fmt.Sprint(family, " ", o["chain"])
					rules[chain] = append(rules[chain], asJSON(t, o))
				default:
					elems, _ := o["elem"].([]any)
					delete(o, "elem")
					line := kind + " " + asJSON(t, o)
					out = append(out, line)
					for _, e := range elems {
						uncomment(e)
						out = append(out, fmt.Sprint("element of ", family, " ", o["name"], " ", asJSON(t, e)))
					}
				}
			}
		}
	}
	for _, chain := range slices.Sorted(maps.Keys(rules)) {
		out = append(out, "rules of "+chain+"\n    "+strings.Join(rules[chain], "\n    "))
	}
	slices.Sort(out)
	return out
}

// uncomment takes away an element's comment: upstream leaves it as it is when a port gets another name and the element
// means the same as before.
func uncomment(element any) {
	if pair, ok := element.([]any); ok && len(pair) > 0 { // of a map: key and verdict
		element = pair[0]
	}
	if outer, ok := element.(map[string]any); ok {
		if inner, ok := outer["elem"].(map[string]any); ok {
			delete(inner, "comment")
		}
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b := testenv.Must(json.Marshal(v))(t)
	return string(b)
}
