// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/cni/plugin"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/watchapi"
)

// TestMain is also the CNI plugin's program: the runtime executes this binary under the plugin's name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == cni.PluginName {
		os.Exit(plugin.Run(context.Background(), plugin.Options{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout}))
	}
	os.Exit(netns.Main(m))
}

// api is what a node's informers ask for, and the events that are written.
type api struct {
	*watchapi.API
	*httptest.Server
	// settings have the ConfigMap of custom.
	settings *clustersettings.Cache

	mu     sync.Mutex
	down   bool
	events []string // that were written, in their binary form
}

func newAPI(t testing.TB) *api {
	a := &api{API: watchapi.New(), settings: clustersettings.NewCache()}
	a.Server = httptest.NewServer(a)
	t.Cleanup(func() {
		a.CloseClientConnections()
		a.Close()
	})
	return a
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	down := a.down
	if strings.HasSuffix(r.URL.Path, "/events") {
		a.events = append(a.events, string(text))
	}
	a.mu.Unlock()
	if down {
		http.Error(w, "no", http.StatusServiceUnavailable)
		return
	}
	a.API.ServeHTTP(w, r)
}

func (a *api) setDown(down bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = down
}

func (a *api) served() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.events)
}

func (a *api) kubeconfig(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	write(t, path, fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: "%s"}}], users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}]}`, a.URL))
	return path
}

func (a *api) namespace(_ testing.TB, name string) {
	a.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

func (a *api) service(_ testing.TB, name, ip string) {
	a.Put(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	})
}

func (a *api) headless(t *testing.T, name string, hostnames map[string]string) {
	a.service(t, name, corev1.ClusterIPNone)
	port, proto, portName, ready := int32(80), corev1.ProtocolTCP, "http", true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: name},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}},
	}
	for host, ip := range hostnames {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{ip}, Hostname: &host, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		})
	}
	a.Put(slice)
}

func write(t testing.TB, path, content string) {
	t.Helper()
	// As a careful writer does it: the watch has to see a rename.
	testenv.NoError(t, os.WriteFile(path+".new", []byte(content), 0o600))
	testenv.NoError(t, os.Rename(path+".new", path))
}

// resolver is a resolver of the host, until the test ends.
func resolver(t testing.TB, listen string, answer dns.HandlerFunc) {
	t.Helper()
	netns.Require(t) // for the port
	pc := testenv.Must(net.ListenPacket("udp", listen))(t)
	s := &dns.Server{PacketConn: pc, Handler: answer}
	done := make(chan error, 1) // read in the clean-up only
	go func() { done <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		_ = pc.Close()
		t.Log(<-done) // it always complains of the closed socket
	})
}

// reply answers an A question with an address for so many seconds.
func reply(w dns.ResponseWriter, q *dns.Msg, address string, seconds int) {
	m := new(dns.Msg).SetReply(q)
	if rr, err := dns.NewRR(fmt.Sprintf("%s %d IN A %s", q.Question[0].Name, seconds, address)); err == nil {
		m.Answer = append(m.Answer, rr)
	}
	_ = w.WriteMsg(m)
}

// outside is a resolver of the host that answers every A question with one address.
func outside(t testing.TB, listen, answer string) {
	t.Helper()
	resolver(t, listen, func(w dns.ResponseWriter, q *dns.Msg) { reply(w, q, answer, 60) })
}

// relay is a resolver of the host that asks another one, and counts.
func relay(t *testing.T, listen, to string) (asked func() int64) {
	t.Helper()
	var count atomic.Int64
	resolver(t, listen, func(w dns.ResponseWriter, q *dns.Msg) {
		if strings.HasSuffix(q.Question[0].Name, ".example.org.") { // the server itself asks too, whether this leads back
			count.Add(1)
		}
		c := &dns.Client{Timeout: 2 * time.Minute}
		if r, _, err := c.Exchange(q, net.JoinHostPort(to, fmt.Sprint(Port))); err == nil {
			_ = w.WriteMsg(r)
		}
	})
	return count.Load
}

const listenAddr = "127.0.0.5"

func run(t testing.TB, a *api, change func(*Options)) *Server {
	t.Helper()
	netns.Require(t) // for ports and resolvers of the test alone
	client, shared := a.informers(t, netinformers.Options{Names: true})
	o := Options{
		Addresses:  []netip.Addr{netip.MustParseAddr(listenAddr)},
		Informers:  shared,
		Client:     client,
		Settings:   a.settings,
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.43.0.10")},
		ResolvConf: filepath.Join(t.TempDir(), "resolv.conf"),
		Logger:     ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true))),
	}
	if change != nil {
		change(&o)
	}
	s := testenv.Must(NewServer(o))(t)
	runParts(t, shared.Run, s.Run)
	return s
}

// runParts runs what a node runs until the test ends.
func runParts(t testing.TB, parts ...func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, len(parts)) // each part's result, read in the clean-up
	for _, run := range parts {
		go func() { done <- run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range parts {
			testenv.Check(t, <-done)
		}
	})
}

// informers are a node's, which the caller runs.
func (a *api) informers(t testing.TB, o netinformers.Options) (kubernetes.Interface, *netinformers.Informers) {
	t.Helper()
	client := testenv.Must(netinformers.NewClient(a.kubeconfig(t)))(t)
	o.Client, o.NodeName = client, "n1"
	shared := testenv.Must(netinformers.New(o))(t)
	return client, shared
}

func query(proto, name string, qtype uint16) (answers []string, rcode string, err error) {
	c := &dns.Client{Net: proto, Timeout: 3 * time.Second}
	r, _, err := c.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype), net.JoinHostPort(listenAddr, fmt.Sprint(Port)))
	if err != nil {
		return nil, "", err
	}
	for _, rr := range r.Answer {
		fields := strings.Fields(rr.String())
		answers = append(answers, strings.Join(fields[4:], " "))
	}
	slices.Sort(answers)
	return answers, dns.RcodeToString[r.Rcode], nil
}

// answered is query, asked again as long as no answer comes, as resolvers do.
func answered(t *testing.T, proto, name string, qtype uint16) (answers []string, rcode string) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, "an answer for "+name, func() (err error) {
		answers, rcode, err = query(proto, name, qtype)
		return err
	})
	return answers, rcode
}

func wantAnswer(t *testing.T, name string, qtype uint16, want ...string) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, name, func() error {
		got, rcode, err := query("udp", name, qtype)
		if err == nil && (rcode != "NOERROR" || !slices.Equal(got, want)) {
			err = fmt.Errorf("got %v (%s), want %v", got, rcode, want)
		}
		return err
	})
}

func TestServiceNamesAreResolved(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	a.headless(t, "db", map[string]string{"db-0": "10.42.0.2", "db-1": "10.42.0.3"})
	run(t, a, nil)
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	wantAnswer(t, "db.default.svc.cluster.local", dns.TypeA, "10.42.0.2", "10.42.0.3")
	wantAnswer(t, "db-1.db.default.svc.cluster.local", dns.TypeA, "10.42.0.3")
	wantAnswer(t, "_http._tcp.web.default.svc.cluster.local", dns.TypeSRV, "0 100 80 web.default.svc.cluster.local.")
	wantAnswer(t, "9.0.43.10.in-addr.arpa", dns.TypePTR, "web.default.svc.cluster.local.")
	wantAnswer(t, "10-42-0-7.default.pod.cluster.local", dns.TypeA, "10.42.0.7")
	if got, _ := answered(t, "tcp", "web.default.svc.cluster.local", dns.TypeA); !slices.Equal(got, []string{"10.43.0.9"}) {
		t.Errorf("by TCP: %v", got)
	}
	if _, rcode := answered(t, "udp", "new.default.svc.cluster.local", dns.TypeA); rcode != "NXDOMAIN" {
		t.Errorf("unknown Service: %s", rcode)
	}
	a.service(t, "new", "10.43.0.11")
	wantAnswer(t, "new.default.svc.cluster.local", dns.TypeA, "10.43.0.11")
}

func TestExternalNamesAreForwarded(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	outside(t, "127.0.0.53:53", "192.0.2.53")
	outside(t, "127.0.0.54:53", "192.0.2.54")
	var path string
	run(t, a, func(o *Options) {
		path = o.ResolvConf
		write(t, path, "nameserver 10.43.0.10\n")
	})
	// The network cable is out, or the host is configured to use the cluster's DNS: no resolver, and no waiting either.
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	start := time.Now()
	if _, rcode := answered(t, "udp", "example.org", dns.TypeA); rcode != "SERVFAIL" {
		t.Errorf("without resolvers: %s; want SERVFAIL", rcode)
	}
	t.Logf("without resolvers, a name outside takes %v", time.Since(start))

	write(t, path, "search home\nnameserver 10.43.0.10\nnameserver 127.0.0.53\n")
	wantAnswer(t, "example.org", dns.TypeA, "192.0.2.53")
	write(t, path, "nameserver 127.0.0.54\n")
	wantAnswer(t, "other.example.org", dns.TypeA, "192.0.2.54")
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	testenv.NoError(t, os.Remove(path))
	write(t, path+".unrelated", "x")
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
}

func TestStartsWithoutAPI(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	a.setDown(true)
	outside(t, "127.0.0.53:53", "192.0.2.53")
	run(t, a, func(o *Options) { write(t, o.ResolvConf, "nameserver 127.0.0.53\n") })
	wantAnswer(t, "example.org", dns.TypeA, "192.0.2.53")
	if _, rcode := answered(t, "udp", "web.default.svc.cluster.local", dns.TypeA); rcode != "SERVFAIL" {
		t.Errorf("cluster name without API: %s; want SERVFAIL", rcode)
	}
	a.setDown(false)
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
}

func TestOperatorsConfigurationIsMerged(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"works":         {"a.override": "hosts {\n 192.0.2.99 nas.home\n fallthrough\n}\n", "c.server": "lab2 {\n hosts {\n 192.0.2.97 x.lab2\n }\n}\n", "b.server": "lab:10053 {\n bind 127.0.0.5\n hosts {\n 192.0.2.98 x.lab\n }\n}\n"},
		"is a mistake":  {"a.override": "no-such-plugin\n"},
		"is not there ": {},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			a.namespace(t, "default")
			a.service(t, "web", "10.43.0.9")
			dir := t.TempDir()
			for file, text := range files {
				write(t, filepath.Join(dir, file), text)
			}
			run(t, a, func(o *Options) { o.ImportDir = dir })
			wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
			if name == "works" {
				wantAnswer(t, "nas.home", dns.TypeA, "192.0.2.99")
				wantAnswer(t, "x.lab", dns.TypeA, "192.0.2.98")
				wantAnswer(t, "x.lab2", dns.TypeA, "192.0.2.97")
			}
		})
	}
}

func TestPortTakenIsRetried(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	netns.Require(t)
	l := testenv.Must(net.Listen("tcp", net.JoinHostPort(listenAddr, fmt.Sprint(Port))))(t)
	run(t, a, nil)
	time.AfterFunc(500*time.Millisecond, func() { l.Close() })
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
}

func TestStopLeavesNoGoroutine(t *testing.T) {
	netns.Require(t)
	before := goleak.IgnoreCurrent()
	t.Run("run", func(t *testing.T) {
		a := newAPI(t)
		a.namespace(t, "default")
		a.service(t, "web", "10.43.0.9")
		outside(t, "127.0.0.53:53", "192.0.2.53")
		var path string
		run(t, a, func(o *Options) { path = o.ResolvConf })
		wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
		write(t, path, "nameserver 127.0.0.53\n")
		wantAnswer(t, "example.org", dns.TypeA, "192.0.2.53")
	})
	// CoreDNS leaves the last forwarder's connection manager to a finalizer; it never keeps more than that one.
	testenv.NoGoroutineLeft(t, before, goleak.IgnoreTopFunction("github.com/coredns/coredns/plugin/pkg/proxy.(*Transport).connManager"))
}

// What CoreDNS has only begun to start it cannot stop.
func TestStopRightAfterStart(t *testing.T) {
	netns.Require(t)
	defer goruntime.GOMAXPROCS(goruntime.GOMAXPROCS(1)) // so that what is begun has not run yet
	client, shared := newAPI(t).informers(t, netinformers.Options{Names: true})
	s := testenv.Must(NewServer(Options{
		Addresses: []netip.Addr{netip.MustParseAddr(listenAddr)},
		Informers: shared, Client: client, Settings: clustersettings.NewCache(),
	}))(t)
	before := goleak.IgnoreCurrent()
	text := fmt.Sprintf(".:%d {\n bind %s\n %s\n}\n", Port, listenAddr, clientsLine(s.o))
	for range 20 {
		instance := testenv.Must(s.launch(nil, text))(t)
		next := testenv.Must(s.launch(instance, text))(t)
		stop(next)
	}
	testenv.NoGoroutineLeft(t, before)
}

// An address may come late, as one of IPv6 does when a machine starts: what was opened at the others until then must
// not take questions away.
func TestFailedStartKeepsNoSocket(t *testing.T) {
	netns.Require(t)
	client, shared := newAPI(t).informers(t, netinformers.Options{Names: true})
	s := testenv.Must(NewServer(Options{
		Addresses: []netip.Addr{netip.MustParseAddr(listenAddr), netip.MustParseAddr("192.0.2.7")},
		Informers: shared, Client: client, Settings: clustersettings.NewCache(),
	}))(t)
	if instance, err := s.start(nil, nil, nil); err == nil {
		stop(instance)
		t.Fatal("started at an address that is not there")
	} else if !strings.Contains(err.Error(), "192.0.2.7") {
		t.Errorf("the error does not name the address: %v", err)
	}
	testenv.Check(t, (&starting{}).canListen("dns", listenAddr, fmt.Sprint(Port)), "a start that failed left a socket")
}
