// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/metrics/pkg/apis/metrics"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// world is a cluster whose kubelets answer what a test says.
type world struct {
	nodes, pods, namespaces cache.Indexer
	board                   *status.Board

	mu       sync.Mutex
	kubelets map[string]*kubelet // by address
	asking   int
	most     int // of asking
	asked    int
}

// kubelet measures when the test lets it.
type kubelet struct {
	// answer, when set, is given in place of figures.
	answer  func(*http.Request) (*http.Response, error)
	at      time.Time
	cpu     float64 // seconds of the node
	memory  float64 // bytes
	rate    uint64  // of the node, as the kubelet knows it
	pods    []podUsage
	summary int // how often it was asked for rates
}

type podUsage struct {
	namespace, name, container string
	started                    time.Time
	cpu                        float64 // seconds
	memory                     float64 // bytes
	rate                       uint64
}

func newWorld() *world {
	return &world{
		nodes:      cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil),
		pods:       cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}),
		namespaces: cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil),
		board:      status.NewBoard(time.Now), kubelets: map[string]*kubelet{},
	}
}

// inWorld runs a test in fake time (testing/synctest), in which sleeping is how time goes by.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) { test(t, newWorld()) })
}

// nextRound lets fake time pass until all kubelets have been asked once more.
func nextRound() {
	time.Sleep(roundInterval) // fake time, which synctest moves on: no real time passes
	synctest.Wait()
}

// node adds one with its kubelet.
func (w *world) node(name string, isReady bool) *kubelet {
	ready := corev1.ConditionFalse
	if isReady {
		ready = corev1.ConditionTrue
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	address := fmt.Sprintf("192.0.%d.%d", len(w.kubelets)/250, len(w.kubelets)%250+1)
	k := &kubelet{at: time.Now(), cpu: 100, memory: 1e9, rate: 250e6}
	w.kubelets[address] = k
	_ = w.nodes.Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}, Status: corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}},
		Capacity:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi")},
	}})
	return k
}

// pod adds one on a node, with one container.
func (w *world) pod(k *kubelet, node, name string) *podUsage {
	_ = w.pods.Add(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:   corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning}})
	w.mu.Lock()
	defer w.mu.Unlock()
	k.pods = append(k.pods, podUsage{namespace: "default", name: name, container: "main", started: time.Now().Add(-time.Hour), cpu: 10, memory: 1e6, rate: 20e6})
	return &k.pods[len(k.pods)-1]
}

// change changes what kubelets know.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	k := w.kubelets[r.URL.Hostname()]
	w.asked++
	if k == nil {
		w.mu.Unlock()
		return nil, fmt.Errorf("no server is at %s", r.URL.Host)
	}
	w.asking++
	w.most = max(w.most, w.asking)
	answer := k.answer
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.asking--
	}()
	if answer != nil {
		return answer(r)
	}
	time.Sleep(10 * time.Millisecond) // of fake time
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.URL.Path == "/stats/summary" {
		k.summary++
		return response(http.StatusOK, k.ofRates()), nil
	}
	return response(http.StatusOK, k.counters()), nil
}

func (k *kubelet) counters() string {
	var b strings.Builder
	ms := k.at.UnixMilli()
	fmt.Fprintf(&b, "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total %f %d\nnode_memory_working_set_bytes %f %d\n", k.cpu, ms, k.memory, ms)
	for _, p := range k.pods {
		labels := fmt.Sprintf(`{container="%s",namespace="%s",pod="%s"}`, p.container, p.namespace, p.name)
		fmt.Fprintf(&b, "container_cpu_usage_seconds_total%s %f %d\ncontainer_memory_working_set_bytes%s %f %d\ncontainer_start_time_seconds%s %f\n",
			labels, p.cpu, ms, labels, p.memory, ms, labels, float64(p.started.UnixMilli())/1000)
	}
	return b.String()
}

func (k *kubelet) ofRates() string {
	var pods []string
	for _, p := range k.pods {
		pods = append(pods, fmt.Sprintf(`{"podRef":{"name":%q,"namespace":%q},"containers":[{"name":%q,"cpu":{"usageNanoCores":%d}}]}`,
			p.name, p.namespace, p.container, p.rate))
	}
	return fmt.Sprintf(`{"node":{"cpu":{"usageNanoCores":%d}},"pods":[%s]}`, k.rate, strings.Join(pods, ","))
}

func response(code int, text string) *http.Response {
	return &http.Response{StatusCode: code, Status: http.StatusText(code), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(text))}
}

// run starts a Collector in a bubble of fake time and stops it at the end of the test.
func (w *world) run(t *testing.T) *Collector {
	t.Helper()
	c := testenv.Must(New(Options{
		Nodes: corelisters.NewNodeLister(w.nodes), Pods: corelisters.NewPodLister(w.pods), Transport: w,
		Namespaces:   corelisters.NewNamespaceLister(w.namespaces),
		AddressTypes: []corev1.NodeAddressType{corev1.NodeInternalIP}, Part: w.board.Part("metrics"), Logger: slog.New(slog.DiscardHandler),
	}))(t)
	ctx, cancel := context.WithCancel(t.Context())
	go c.Run(ctx)
	t.Cleanup(func() {
		cancel()
		<-c.done
	})
	return c
}

// top is what a node uses, or its error; "" if there are no figures.
func (w *world) top(c *Collector, names ...string) string {
	var nodes []*corev1.Node
	for _, name := range names {
		nodes = append(nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	ms, err := c.GetNodeMetrics(nodes...)
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, m := range ms {
		out = append(out, fmt.Sprintf("%s %dm %dM %v", m.Name, m.Usage.Cpu().MilliValue(), m.Usage.Memory().Value()/1e6, m.Window.Duration))
	}
	return strings.Join(out, ", ")
}

func (w *world) topPod(t *testing.T, c *Collector, name string) string {
	t.Helper()
	o, err := runningPods{c.o.Pods}.ByNamespace("default").Get(name)
	if err != nil {
		return err.Error()
	}
	ms, err := c.GetPodMetrics(o.(*metav1.PartialObjectMetadata))
	if err != nil {
		return err.Error()
	}
	if len(ms) == 0 {
		return ""
	}
	return podText(ms[0])
}

func podText(m metrics.PodMetrics) string {
	var out []string
	for _, c := range m.Containers {
		out = append(out, fmt.Sprintf("%s/%s %dm %v", m.Name, c.Name, c.Usage.Cpu().MilliValue(), m.Window.Duration))
	}
	return strings.Join(out, ", ")
}

func (w *world) line() string {
	for _, c := range w.board.Components() {
		if c.Name == "metrics" {
			return string(c.State) + ": " + c.Message
		}
	}
	return ""
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	testenv.Equal(t, got, want, "%s:", what)
}
