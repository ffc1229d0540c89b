// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/proxy"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/services"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	nodeAddr = netns.NodeIP
	dnsAddr  = "10.43.0.10"
	webAddr  = "10.43.0.9"
)

// TestPodsAndHostResolveServices puts a node's three network parts together, as the agent does, and uses them as a pod
// and as a process of the host would: look a Service's name up at the cluster's DNS address, and connect.
func TestPodsAndHostResolveServices(t *testing.T) {
	for _, on := range []bool{false, true} {
		t.Run(fmt.Sprintf("br_netfilter=%v", on), func(t *testing.T) {
			netns.RequireNFT(t)
			netns.BridgeNetfilter(t, on)
			testNodeNetwork(t)
		})
	}
}

func testNodeNetwork(t *testing.T) {
	netns.NewOutside(t) // no default route anywhere: the network cable is out
	a := newAPI(t)
	startNode(t, a)
	client, server := addPod(t, "client"), addPod(t, "server")
	netns.Serve(t, server.NS, "web", "tcp", ":8080")
	a.namespace(t, "default")
	a.namespace(t, "kube-system")
	a.balanced(t, "kube-system", "kube-dns", dnsAddr, nodeAddr, Port, true,
		corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, corev1.ServicePort{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP})
	a.balanced(t, "default", "web", webAddr, server.ip, 8080, false,
		corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP})

	for name, from := range map[string]func(func() error) error{
		"pod": client.Do, "the Service's own pod": server.Do, "host": func(f func() error) error { return f() },
	} {
		for _, proto := range []string{"udp", "tcp"} {
			t.Run(name+" by "+proto, func(t *testing.T) { lookupAndConnect(t, from, proto) })
		}
	}
}

// lookupAndConnect runs its tries inside the namespace that from enters.
func lookupAndConnect(t *testing.T, from func(func() error) error, proto string) {
	t.Helper()
	lookup := func() error {
		c := &dns.Client{Net: proto, Timeout: 3 * time.Second}
		r, _, err := c.Exchange(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA), dnsAddr+":53")
		if err == nil && (len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != webAddr) {
			err = fmt.Errorf("DNS says %v", r)
		}
		return err
	}
	testenv.Eventually(t, 2*time.Minute, "look the Service up and connect", func() error {
		if err := from(lookup); err != nil {
			return err
		}
		_, err := netns.Ask(netns.In(from), webAddr+":80")
		return err
	})
}

var nodeDirs struct{ bin, conf string } // of the node that startNode made last

// startNode runs what an agent runs.
func startNode(t *testing.T, a *api) {
	t.Helper()
	dir := t.TempDir()
	nodeDirs.bin, nodeDirs.conf = dir, filepath.Join(dir, "net.d")
	exe := testenv.Must(os.Executable())(t)
	testenv.NoError(t, os.Symlink(exe, filepath.Join(dir, cni.PluginName)))
	testenv.NoError(t, os.Mkdir(filepath.Join(dir, "state"), 0o700))
	a.Put(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.42.7.0/24"}},
	})
	log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	client, shared := a.informers(t, netinformers.Options{Services: true, Names: true})
	podCIDRs := testenv.Must(cni.WatchPodCIDRs(shared.Nodes(), "n1"))(t)
	cluster, services := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}
	node := []netip.Addr{netip.MustParseAddr(nodeAddr)}
	pods := testenv.Must(cni.NewServer(cni.Options{
		Socket: filepath.Join(dir, "cni.sock"), StateDir: filepath.Join(dir, "state"), ConfDir: nodeDirs.conf,
		PodCIDRs: podCIDRs, ClusterCIDRs: cluster, ServiceCIDRs: services, Logger: log,
	}))(t)
	record := filepath.Join(dir, "service-proxy")
	balancer, err := proxy.New(t.Context(), proxy.Options{
		NodeIPs: node, ClusterCIDRs: cluster, ServiceCIDRs: services, Mode: proxy.ModeNFTables, Informers: shared, RecordFile: record, Logger: log,
	})
	testenv.NoError(t, err)
	names := testenv.Must(NewServer(Options{
		Addresses: node, Informers: shared, Client: client, Clients: cluster, ClusterDNS: []netip.Addr{netip.MustParseAddr(dnsAddr)},
		Settings: clustersettings.NewCache(), ResolvConf: filepath.Join(dir, "resolv.conf"), Logger: log,
	}))(t)
	t.Cleanup(func() {
		testenv.Check(t, cni.Cleanup(cni.CleanupOptions{}))
		testenv.Check(t, testenv.Err(nft.RemoveServiceRules(record)))
	})
	runParts(t, shared.Run, pods.Run, balancer.Run, names.Run)
}

type pod struct {
	*netns.NS
	ip string
}

// addPod attaches a new network namespace as containerd does it.
func addPod(t *testing.T, id string) pod {
	t.Helper()
	p := pod{NS: netns.New(t)}
	plugins := libcni.NewCNIConfigWithCacheDir([]string{nodeDirs.bin}, t.TempDir(), nil)
	var list *libcni.NetworkConfigList
	testenv.Eventually(t, 2*time.Minute, "the node is ready for pods", func() (err error) {
		list, err = libcni.ConfListFromFile(filepath.Join(nodeDirs.conf, "10-coracle.conflist"))
		return err
	})
	res, err := plugins.AddNetworkList(context.Background(), list, &libcni.RuntimeConf{ContainerID: id, NetNS: p.Path, IfName: "eth0"})
	testenv.NoError(t, err, "ADD")
	p.ip = res.(*types100.Result).IPs[0].Address.IP.String()
	return p
}

// balanced makes a Service with one endpoint on node n1, in one slice.
func (a *api) balanced(t *testing.T, ns, name, clusterIP, endpoint string, port int32, local bool, ports ...corev1.ServicePort) {
	t.Helper()
	s := services.New(name, []string{clusterIP}, slices.Clone(ports)...)
	s.Namespace = ns
	if local {
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}
	a.Put(s, services.Slice(s, "n1", port, endpoint))
}
