//go:build bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	backA, backB = 8081, 8082 // where the back ends answer with their port
	ingressRuns  = 100
	floodFor     = 20 * time.Second
)

// visitor is an HTTP client on a machine beside the cluster.
func visitor(m *harness.Machine, connections int) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return m.Dial(ctx, network, address)
		},
	}}
}

// get asks ip for a host's only page.
func get(ctx context.Context, client *http.Client, address, host string) string {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return err.Error()
	}
	r.Host = host
	res, err := client.Do(r)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return fmt.Sprint(res.StatusCode, " ", string(text))
}

// TestIngressTimes measures on three servers that run pods how long it takes from an Ingress' creation until all nodes
// serve it, from a change of an EndpointSlice until all use it, and what requests of the API take while as many
// requests as go are sent through the ingress, and past it.
func TestIngressTimes(t *testing.T) {
	c := NewOfNodes(t, 3, 0)
	beside := c.machine()
	for _, port := range []int{backA, backB} {
		l := testenv.Must(beside.Listen(fmt.Sprintf(":%d", port)))(t)
		s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, port) })}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close() })
	}
	api, ctx := c.Ask(c.MustLeader()), t.Context()
	slice := endpointsAt(beside.IP, backA)
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "site"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	testenv.Must(api.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, service, metav1.CreateOptions{}))(t)
	testenv.Must(api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(ctx, slice, metav1.CreateOptions{}))(t)
	client := visitor(beside, 200)
	// all waits until every node answers, and returns how long that took.
	all := func(began time.Time, host string, port int) time.Duration {
		var wg sync.WaitGroup
		for _, n := range c.Servers {
			wg.Go(func() {
				for end := time.Now().Add(soon); get(ctx, client, n.IP+":80", host) != fmt.Sprintf("200 %d", port); pauseFor(ctx, 2*time.Millisecond) {
					if time.Now().After(end) {
						t.Errorf("machine %d answers %q", n.Number, get(ctx, client, n.IP+":80", host))
						return
					}
				}
			})
		}
		wg.Wait()
		return time.Since(began)
	}
	create := func(host string) time.Time {
		testenv.Must(api.NetworkingV1().Ingresses(metav1.NamespaceDefault).Create(ctx, ingressOf(host), metav1.CreateOptions{}))(t)
		return time.Now()
	}
	fmt.Printf("\nthe first Ingress is served by all nodes %.0f ms after its creation\n", ms(all(create("first.example"), "first.example", backA)))
	fmt.Printf("\n| three nodes | times | p50 ms | p99 ms | most ms |\n| --- | --- | --- | --- | --- |\n")
	var served, used []time.Duration
	for i := range ingressRuns {
		host := fmt.Sprintf("h%d.example", i)
		served = append(served, all(create(host), host, backA))
	}
	ingressRow("an Ingress is created: all nodes serve it", served)
	for i := range ingressRuns {
		port := []int{backB, backA}[i%2]
		slice.Ports[0].Port = ptr.To(int32(port))
		testenv.Must(api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Update(ctx, slice, metav1.UpdateOptions{}))(t)
		used = append(used, all(time.Now(), "first.example", port))
	}
	ingressRow("an EndpointSlice changes: all nodes use it", used)

	leader, term, err := c.Leader(ctx, c.Servers)
	testenv.NoError(t, err)
	flood := func(addresses ...string) func() int64 {
		child := c.Servers[0].Outside(ctx, os.Args[0], "-test.run=^TestFlood$")
		child.Env = append(os.Environ(), floodEnv+"="+strings.Join(addresses, ","), "GOMAXPROCS=1")
		in := testenv.Must(child.StdinPipe())(t)
		var out strings.Builder
		child.Stdout = &out
		testenv.NoError(t, child.Start())
		return func() (n int64) {
			_ = in.Close()
			testenv.NoError(t, child.Wait())
			_, _ = fmt.Sscan(out.String(), &n)
			return n
		}
	}
	var nodes, past []string
	for _, n := range c.Servers {
		nodes, past = append(nodes, n.IP+":80"), append(past, fmt.Sprintf("%s:%d", beside.IP, backA))
	}
	for _, phase := range []struct {
		name string
		at   []string
	}{{"no requests", nil}, {"the same clients ask the back end itself", past}, {"192 clients ask through the ingress of all nodes", nodes}, {"no requests again", nil}} {
		end := func() int64 { return 0 }
		if phase.at != nil {
			end = flood(phase.at...)
		}
		reads, writes := latencies(t, api)
		n := end()
		name := fmt.Sprintf("%s (%.0f/s)", phase.name, float64(n)/floodFor.Seconds())
		ingressRow(name+": the API reads", reads)
		ingressRow(name+": it writes", writes)
	}
	now, newest, err := c.Leader(ctx, c.Servers)
	fmt.Printf("the store's leader: machine %d in term %d before, machine %d in term %d after; load %s\n", leader.Number, term, now.Number, newest, load())
	testenv.False(t, err != nil || now != leader || newest != term, "the store has another leader: %v", err)
}

// floodEnv has the addresses that TestFlood asks.
const floodEnv = "CORACLE_FLOOD"

// TestFlood is a child of TestIngressTimes: 64 clients for each address ask without a pause until the input ends, and
// it prints how many answers there were.
func TestFlood(t *testing.T) {
	at := os.Getenv(floodEnv)
	if at == "" { // no measurement of its own
		t.Skip("runs only as a child of TestIngressTimes")
	}
	addresses := strings.Split(at, ",")
	ctx, cancel := context.WithCancel(t.Context())
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64 * len(addresses)}}
	var wg sync.WaitGroup
	var done atomic.Int64
	for i := range 64 * len(addresses) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if strings.HasPrefix(get(ctx, client, addresses[i%len(addresses)], "first.example"), "200") {
					done.Add(1)
				}
			}
		})
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	wg.Wait()
	fmt.Println(done.Load())
}

// latencies are those of an API that is read from and written to for floodFor, ten times a second.
func latencies(t *testing.T, api kubernetes.Interface) (reads, writes []time.Duration) {
	t.Helper()
	maps := api.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	for end := time.Now().Add(floodFor); time.Now().Before(end); pauseFor(t.Context(), 100*time.Millisecond) {
		began := time.Now()
		testenv.Must(maps.Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{}))(t)
		reads, began = append(reads, time.Since(began)), time.Now()
		testenv.Must(
			maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "written-"}}, metav1.CreateOptions{}))(t)
		writes = append(writes, time.Since(began))
	}
	return reads, writes
}

func ingressRow(name string, took []time.Duration) {
	sorted := sortedDurations(took)
	fmt.Printf("| %s | %d | %.1f | %.1f | %.1f |\n", name, len(took), ms(sorted[len(sorted)/2]), ms(sorted[(len(sorted)*99-1)/100]), ms(last(sorted)))
}

func endpointsAt(ip string, port int32) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "site", Labels: map[string]string{discoveryv1.LabelServiceName: "site"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To(port)}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{ip}}},
	}
}

func ingressOf(host string) *networkingv1.Ingress {
	path := networkingv1.HTTPIngressPath{Path: "/", PathType: ptr.To(networkingv1.PathTypePrefix), Backend: networkingv1.IngressBackend{
		Service: &networkingv1.IngressServiceBackend{Name: "site", Port: networkingv1.ServiceBackendPort{Number: 80}},
	}}
	return &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: strings.TrimSuffix(host, ".example")}, Spec: networkingv1.IngressSpec{Rules: []networkingv1.IngressRule{{
		Host: host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{path}}},
	}}}}
}
