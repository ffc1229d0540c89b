// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// While no server answers the host gets another resolver: names of the cluster are answered all the same.
func TestNewResolverWithoutAPI(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	outside(t, "127.0.0.53:53", "192.0.2.53")
	outside(t, "127.0.0.54:53", "192.0.2.54")
	var path string
	run(t, a, func(o *Options) {
		path = o.ResolvConf
		write(t, path, "nameserver 127.0.0.53\n")
	})
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	a.setDown(true)
	a.CloseClientConnections()
	write(t, path, "nameserver 127.0.0.54\n")
	testenv.Eventually(t, 2*time.Minute, "the other resolver is asked", func() error {
		got, rcode, err := query("udp", fmt.Sprintf("x%d.example.org", time.Now().UnixNano()), dns.TypeA)
		if err == nil && (rcode != "NOERROR" || !slices.Equal(got, []string{"192.0.2.54"})) {
			err = fmt.Errorf("%v (%s)", got, rcode)
		}
		return err
	})
	if got, rcode := answered(t, "udp", "web.default.svc.cluster.local", dns.TypeA); rcode != "NOERROR" || !slices.Equal(got, []string{"10.43.0.9"}) {
		t.Errorf("a name of the cluster: %v (%s)", got, rcode)
	}
}

// namedThings are Services of every kind with their slices, in the API.
func namedThings(t *testing.T, a *api) {
	a.namespace(t, "default")
	a.namespace(t, "empty")
	service := func(name string, labels map[string]string, spec corev1.ServiceSpec) {
		a.Put(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels, Annotations: map[string]string{"a": "b"}}, Spec: spec,
		})
	}
	ports := []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}}
	service("web", nil, corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.43.0.9", ClusterIPs: []string{"10.43.0.9", "fd43::9"}, Ports: ports})
	service("others", map[string]string{"service.kubernetes.io/service-proxy-name": "x"},
		corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.43.0.8", ClusterIPs: []string{"10.43.0.8"}, Ports: ports[:1]})
	service("old", nil, corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.43.0.7", Ports: ports[:1]}) // without the list of addresses
	service("alias", nil, corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "web.default.svc.cluster.local"})
	service("away", nil, corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "192.0.2.7"})
	headless := corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "None", ClusterIPs: []string{"None"}, Selector: map[string]string{"app": "db"}}
	service("portless", nil, headless)
	headless.Ports = ports
	service("db", nil, headless)
	service("lonely", nil, headless)
	headless.PublishNotReadyAddresses = true
	service("early", nil, headless)
	service("balanced", nil, corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.43.0.6", ClusterIPs: []string{"10.43.0.6"},
		ExternalIPs: []string{"192.0.2.66"}, Ports: ports})

	yes, no, port, name, tcp := true, false, int32(8080), "http", corev1.ProtocolTCP
	host := func(s string) *string { return &s }
	slice := func(service, name string, family discoveryv1.AddressType, without bool, ports []discoveryv1.EndpointPort, endpoints ...discoveryv1.Endpoint) {
		labels := map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "test"}
		if without {
			labels[corev1.IsHeadlessService] = ""
		}
		a.Put(&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels},
			AddressType: family, Ports: ports, Endpoints: endpoints,
		})
	}
	onePort := []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &tcp}}
	end := func(ready *bool, hostname *string, addrs ...string) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: addrs, Hostname: hostname, NodeName: host("n2"), Zone: host("z"),
			Conditions: discoveryv1.EndpointConditions{Ready: ready, Serving: &yes}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "p"}}
	}
	slice("web", "web-x", discoveryv1.AddressTypeIPv4, false, onePort, end(&yes, nil, "10.42.0.20"), end(&no, nil, "10.42.0.21"), end(nil, host("named"), "10.42.0.22"))
	slice("db", "db-x", discoveryv1.AddressTypeIPv4, true, onePort, end(&yes, host("db-0"), "10.42.0.2"), end(&yes, nil, "10.42.0.3"), end(&no, host("db-2"), "10.42.0.4"))
	slice("db", "db-y", discoveryv1.AddressTypeIPv6, true, onePort, end(nil, host("db-0"), "fd42::2"))
	leaving := end(&no, host("e-1"), "10.42.0.7")
	leaving.Conditions.Terminating = &yes
	slice("early", "early-x", discoveryv1.AddressTypeIPv4, true, onePort, end(&no, host("e-0"), "10.42.0.6"), leaving)
	slice("portless", "portless-x", discoveryv1.AddressTypeIPv4, true, nil, end(&yes, host("a"), "10.42.0.5"))
	slice("absent", "absent-x", discoveryv1.AddressTypeIPv4, false, onePort, end(&yes, nil, "10.42.0.30"))
}

// upstreamDirective is the kubernetes plugin that watches for itself, and leaves klog alone.
const upstreamDirective = "upstreams-kubernetes"

// registerUpstream can be called as often as tests are repeated.
var registerUpstream = sync.OnceValue(func() error {
	if err := register(); err != nil {
		return err
	}
	last := len(dnsserver.Directives) - 1 // setupConnections has to be the last
	dnsserver.Directives = slices.Insert(slices.Clone(dnsserver.Directives), last, upstreamDirective)
	plugin.Register(upstreamDirective, func(c *caddy.Controller) error {
		c.Next()
		k, err := kubernetes.ParseStanza(c)
		if err != nil {
			return err
		}
		start, stop, err := k.InitKubeCache(context.Background())
		if err != nil {
			return err
		}
		c.OnStartup(start)
		c.OnShutdown(stop)
		dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
			k.Next = next
			return k
		})
		return nil
	})
	return nil
})

// TestSameAnswersAsUpstreamsCaches asks two servers of one process everything: ours, which reads the caches of the
// node, and one with upstream's own.
func TestSameAnswersAsUpstreamsCaches(t *testing.T) {
	testenv.NoError(t, registerUpstream())
	a := newAPI(t)
	namedThings(t, a)
	runBesideUpstream(t, a)
	answered := 0
	for _, name := range everyName() {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT, dns.TypeCNAME, dns.TypeNS, dns.TypeMX} {
			if len(wantSameAnswer(t, name, kind).Answer) > 0 {
				answered++
			}
		}
	}
	testenv.True(t, answered >= 30, "only %d questions have an answer: the comparison says little", answered)
}

const upstreamsPort = 5300

// runBesideUpstream runs our server, and in the same process one with upstream's own caches.
func runBesideUpstream(t *testing.T, a *api) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "upstream.server"), fmt.Sprintf(`.:%d {
  %s cluster.local in-addr.arpa ip6.arpa {
    kubeconfig %q
    pods insecure
    fallthrough in-addr.arpa ip6.arpa
  }
}
`, upstreamsPort, upstreamDirective, a.kubeconfig(t)))
	run(t, a, func(o *Options) { o.ImportDir = dir })
}

// wantSameAnswer waits until both servers know the same, and is what ours answers.
func wantSameAnswer(t *testing.T, name string, kind uint16) (own *dns.Msg) {
	t.Helper()
	ask := func(port int) (*dns.Msg, error) {
		c := &dns.Client{Timeout: 3 * time.Second}
		r, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, kind), net.JoinHostPort(listenAddr, fmt.Sprint(port)))
		return r, err
	}
	testenv.Eventually(t, 2*time.Minute, "the same answer for "+name, func() (err error) {
		if own, err = ask(Port); err != nil {
			return err
		}
		upstreamAnswer, err := ask(upstreamsPort)
		if err != nil {
			return err
		}
		if got, want := summary(own), summary(upstreamAnswer); got != want || upstreamAnswer.Rcode == dns.RcodeServerFailure && !strings.HasSuffix(name, "arpa.") {
			return fmt.Errorf("%s %s: ours\n%s\nupstream's\n%s", name, dns.TypeToString[kind], got, want)
		}
		return nil
	})
	return own
}

// everyName are names that exist, and some that do not.
func everyName() []string {
	names := []string{
		"cluster.local.", "dns-version.cluster.local.", "ns.dns.cluster.local.", "svc.cluster.local.", "default.svc.cluster.local.", "empty.svc.cluster.local.", "no.svc.cluster.local.",
		"web.no.svc.cluster.local.", "10-42-0-2.default.pod.cluster.local.", "10-42-0-2.no.pod.cluster.local.", "x.default.pod.cluster.local.", "WEB.Default.svc.cluster.local.",
		"a\\.b.default.svc.cluster.local.", "10-42-0-20.web.default.svc.cluster.local.", "10-42-0-21.web.default.svc.cluster.local.", "named.web.default.svc.cluster.local.",
		"db-0.db.default.svc.cluster.local.", "10-42-0-3.db.default.svc.cluster.local.", "db-2.db.default.svc.cluster.local.", "a.portless.default.svc.cluster.local.", "x.lonely.default.svc.cluster.local.",
		"e-0.early.default.svc.cluster.local.", "e-1.early.default.svc.cluster.local.",
	}
	for _, service := range []string{"web", "others", "old", "alias", "away", "portless", "db", "lonely", "early", "balanced", "absent", "db-x"} {
		for _, port := range []string{"", "_http._tcp.", "_dns._udp.", "_http._udp.", "_no._tcp."} {
			names = append(names, port+service+".default.svc.cluster.local.")
		}
	}
	for _, ip := range []string{"10.43.0.9", "fd43::9", "10.43.0.8", "10.43.0.7", "10.43.0.99", "10.42.0.20", "10.42.0.21", "10.42.0.22", "10.42.0.2", "10.42.0.3", "10.42.0.4", "10.42.0.5", "10.42.0.7", "fd42::2",
		"10.42.0.30", "192.0.2.66"} {
		if name, err := dns.ReverseAddr(ip); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// summary is an answer as text: without its order, without when the zone changed last, and without the times to live,
// which our cache bounds.
func summary(m *dns.Msg) string {
	var lines []string
	for part, records := range map[string][]dns.RR{"answer": m.Answer, "authority": m.Ns, "extra": m.Extra} {
		for _, rr := range records {
			rr.Header().Ttl = 0
			if soa, ok := rr.(*dns.SOA); ok {
				soa.Serial = 0
			}
			lines = append(lines, part+" "+rr.String())
		}
	}
	slices.Sort(lines)
	return dns.RcodeToString[m.Rcode] + "\n" + strings.Join(lines, "\n")
}

// A zone's serial number is the time of the last change.
func TestSerialIsTheTimeOfTheLastChange(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	s := run(t, a, nil)
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	known, ok := clusters.Load(s.o.id)
	testenv.Require(t, ok, "the server has no cluster")
	c := known.(*cluster)
	testenv.Eventually(t, 2*time.Minute, "the serial number is a time", func() error {
		if at := c.Modified(0); at < time.Now().Add(-time.Hour).Unix() {
			return fmt.Errorf("%d", at)
		}
		return nil
	})
	for _, service := range []string{"new", "web"} { // the second one changes
		c.lastChange.Store(1)
		a.service(t, service, "10.43.0.11")
		testenv.Eventually(t, 2*time.Minute, "it rises with the Service "+service, func() error {
			if at := c.Modified(0); at == 1 {
				return fmt.Errorf("%d", at)
			}
			return nil
		})
	}
}
