// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"context"
	"errors"
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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/metrics/pkg/apis/metrics"

	"github.com/coracle-k8s/coracle/internal/status"
)

// world is a cluster whose kubelets answer what a test says.
type world struct {
	nodes, pods cache.Indexer
	board       *status.Board

	mu       sync.Mutex
	kubelets map[string]*kubelet // by address
	asking   int
	most     int // of asking
	asked    int
}

// kubelet measures when it is told to.
type kubelet struct {
	// answer, when set, is given in place of figures.
	answer  func(*http.Request) (*http.Response, error)
	at      time.Time
	cpu     float64 // seconds of the node
	rate    uint64  // of the node, as the kubelet knows it
	pods    []podUsage
	summary int // how often it was asked for rates
}

type podUsage struct {
	namespace, name, container string
	started                    time.Time
	cpu                        float64 // seconds
	rate                       uint64
}

func newWorld() *world {
	return &world{
		nodes: cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil),
		pods:  cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}),
		board: status.NewBoard(time.Now), kubelets: map[string]*kubelet{},
	}
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
	k := &kubelet{at: time.Now(), cpu: 100, rate: 250e6}
	w.kubelets[address] = k
	_ = w.nodes.Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}, Status: corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}},
	}})
	return k
}

// pod adds one on a node, with one container.
func (w *world) pod(k *kubelet, node, name string) *podUsage {
	_ = w.pods.Add(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: corev1.PodRunning}})
	w.mu.Lock()
	defer w.mu.Unlock()
	k.pods = append(k.pods, podUsage{namespace: "default", name: name, container: "main", started: time.Now().Add(-time.Hour), cpu: 10, rate: 20e6})
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
		return says(http.StatusOK, k.ofRates()), nil
	}
	return says(http.StatusOK, k.counters()), nil
}

func (k *kubelet) counters() string {
	var b strings.Builder
	ms := k.at.UnixMilli()
	fmt.Fprintf(&b, "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total %f %d\nnode_memory_working_set_bytes 1e+09 %d\n", k.cpu, ms, ms)
	for _, p := range k.pods {
		labels := fmt.Sprintf(`{container="%s",namespace="%s",pod="%s"}`, p.container, p.namespace, p.name)
		fmt.Fprintf(&b, "container_cpu_usage_seconds_total%s %f %d\ncontainer_memory_working_set_bytes%s 1e+06 %d\ncontainer_start_time_seconds%s %f\n",
			labels, p.cpu, ms, labels, ms, labels, float64(p.started.UnixMilli())/1000)
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

func says(code int, text string) *http.Response {
	return &http.Response{StatusCode: code, Status: http.StatusText(code), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(text))}
}

// run starts a Collector in a bubble of fake time and stops it at the end of the test.
func (w *world) run(t *testing.T) *Collector {
	t.Helper()
	c, err := New(Options{
		Nodes: corelisters.NewNodeLister(w.nodes), Pods: corelisters.NewPodLister(w.pods), Transport: w,
		AddressTypes: []corev1.NodeAddressType{corev1.NodeInternalIP}, Part: w.board.Part("metrics"), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go c.Run(ctx)
	t.Cleanup(func() {
		cancel()
		<-c.ended
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
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// TestAnswers: the first question is answered by the kubelet's own rate, later ones by what its counters did meanwhile.
func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		k := w.node("one", true)
		pod := w.pod(k, "one", "web")
		c := w.run(t)
		expect(t, "at rest", w.line(), "running: at rest until somebody asks")
		expect(t, "the first answer", w.top(c, "one"), "one 250m 1000M 10s")
		expect(t, "the pod's first answer", w.topPod(t, c, "web"), "web/main 20m 10s")
		expect(t, "asked", w.line(), "running: somebody asks, so kubelets are asked every 15s")

		w.change(func() { k.at, k.cpu, pod.cpu = k.at.Add(12*time.Second), k.cpu+6, pod.cpu+1.2 })
		time.Sleep(period)
		synctest.Wait()
		expect(t, "after a measurement", w.top(c, "one"), "one 500m 1000M 12s")
		expect(t, "the pod after a measurement", w.topPod(t, c, "web"), "web/main 100m 12s")
		time.Sleep(period)
		expect(t, "without another measurement", w.top(c, "one"), "one 500m 1000M 12s")
		if k.summary != 1 {
			t.Errorf("the kubelet was asked for its rates %d times, want once", k.summary)
		}

		// The container and the machine start again.
		w.change(func() {
			k.at, k.cpu, k.rate = k.at.Add(30*time.Second), 1, 100e6
			pod.started, pod.cpu, pod.rate = k.at.Add(-20*time.Second), 4, 0
		})
		time.Sleep(period)
		synctest.Wait()
		expect(t, "a machine that has started again", w.top(c, "one"), "one 100m 1000M 10s")
		expect(t, "a container that was not measured twice", w.topPod(t, c, "web"), "web/main 200m 20s")
		if k.summary != 2 {
			t.Errorf("the kubelet was asked for its rates %d times, want twice", k.summary)
		}
	})
}

// TestRest: kubelets are asked as long as somebody asks, and not otherwise.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.node("one", true)
		c := w.run(t)
		time.Sleep(time.Hour)
		if w.asked != 0 {
			t.Errorf("a kubelet was asked %d times though nobody asked", w.asked)
		}
		w.top(c, "one")
		time.Sleep(interest + 2*period)
		synctest.Wait()
		if want := int(interest/period) + 2; w.asked > want || w.asked < want-3 {
			t.Errorf("a kubelet was asked %d times after one question, want about %d", w.asked, want)
		}
		expect(t, "at rest again", w.line(), "running: at rest until somebody asks")
		before := w.asked
		time.Sleep(24 * time.Hour)
		if w.asked != before {
			t.Errorf("at rest a kubelet was asked %d times", w.asked-before)
		}
		expect(t, "the next day", w.top(c, "one"), "one 250m 1000M 10s")
		for range 40 { // an autoscaler
			time.Sleep(period)
			w.top(c, "one")
		}
		if got := w.asked - before; got < 40 || got > 44 {
			t.Errorf("in ten minutes with an autoscaler a kubelet was asked %d times, want 42", got)
		}
	})
}

// TestBadKubelets: whatever a kubelet does, the figures of the others are there, and what is wrong is said.
func TestBadKubelets(t *testing.T) {
	answer := func(text string) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) { return says(http.StatusOK, text), nil }
	}
	for name, bad := range map[string]struct {
		answer func(*http.Request) (*http.Response, error)
		want   string
	}{
		"hangs": {func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}, "deadline exceeded"},
		"is away":            {func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }, "connection refused"},
		"refuses":            {func(*http.Request) (*http.Response, error) { return says(http.StatusForbidden, "no"), nil }, "Forbidden"},
		"says nothing":       {answer(""), "without any figures"},
		"is another server":  {answer("<html><body>welcome</body></html>\n"), "parsing"},
		"names no container": {answer("container_cpu_usage_seconds_total 1\n"), "makes no sense"},
		"has broken labels":  {answer("container_cpu_usage_seconds_total{container=\"a\",namespace=\"b"), ""},
		"never ends": {func(*http.Request) (*http.Response, error) {
			r := says(http.StatusOK, "")
			r.Body = io.NopCloser(endless{})
			return r, nil
		}, "longer than 16 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.node("good", true)
				k := w.node("bad", true)
				w.pod(k, "bad", "lost")
				k.answer = bad.answer
				c := w.run(t)
				expect(t, "both", w.top(c, "bad", "good"), "good 250m 1000M 10s")
				for what, got := range map[string]string{"node": w.top(c, "bad"), "pod": w.topPod(t, c, "lost"), "status": w.line()} {
					if !strings.Contains(got, "the kubelet of node bad does not answer") || !strings.Contains(got, bad.want) {
						t.Errorf("%s: %q, want the node's name and %q", what, got, bad.want)
					}
				}
				if !strings.HasPrefix(w.line(), "degraded: 1 of 2 kubelets") {
					t.Errorf("status: %q", w.line())
				}
				w.change(func() { k.answer = nil })
				time.Sleep(2 * period)
				synctest.Wait()
				expect(t, "it is well again", w.top(c, "bad"), "bad 250m 1000M 10s")
				expect(t, "its pod", w.topPod(t, c, "lost"), "lost/main 20m 10s")
				expect(t, "status", w.line(), "running: somebody asks, so kubelets are asked every 15s")
			})
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '#'
	}
	return len(p), nil
}

// TestStrangeRates: a summary that makes no sense costs the first figures and nothing else.
func TestStrangeRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		k := w.node("one", true)
		pod := w.pod(k, "one", "web")
		k.answer = func(r *http.Request) (*http.Response, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if r.URL.Path == "/stats/summary" {
				return says(http.StatusOK, `{"node":{"cpu":null},"pods":[{"podRef":{},"containers":null}, {"containers":[{"cpu":{"usageNanoCores":7}}]}]}`), nil
			}
			return says(http.StatusOK, k.counters()), nil
		}
		c := w.run(t)
		expect(t, "before there is a rate", w.top(c, "one"), "")
		expect(t, "the pod", w.topPod(t, c, "web"), "")
		w.change(func() { k.at, k.cpu, pod.cpu = k.at.Add(10*time.Second), k.cpu+1, pod.cpu+1 })
		time.Sleep(period)
		synctest.Wait()
		expect(t, "after another measurement", w.top(c, "one"), "one 100m 1000M 10s")
		expect(t, "the pod", w.topPod(t, c, "web"), "web/main 100m 10s")
	})
}

// TestForeignPods: a kubelet speaks for its own pods only.
func TestForeignPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		honest, liar := w.node("honest", true), w.node("liar", true)
		w.pod(honest, "honest", "web")
		liar.pods = []podUsage{
			{namespace: "default", name: "web", container: "main", started: time.Now().Add(-time.Hour), cpu: 1e6, rate: 64e9},
			{namespace: "default", name: "unheard-of", container: "main", started: time.Now().Add(-time.Hour), cpu: 1e6, rate: 64e9},
		}
		c := w.run(t)
		expect(t, "the pod", w.topPod(t, c, "web"), "web/main 20m 10s")
		if n := len(c.now.pods); n != 1 {
			t.Errorf("figures of %d pods are kept, want 1", n)
		}
	})
}

// TestNodeVanishes: what is gone from the cluster is gone from the figures.
func TestNodeVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.node("stays", true)
		k := w.node("goes", true)
		w.pod(k, "goes", "web")
		c := w.run(t)
		expect(t, "both", w.top(c, "goes", "stays"), "goes 250m 1000M 10s, stays 250m 1000M 10s")
		w.change(func() {
			k.answer = func(*http.Request) (*http.Response, error) { return nil, errors.New("no route to host") }
		})
		time.Sleep(period)
		synctest.Wait()
		expect(t, "one", w.top(c, "goes", "stays"), "stays 250m 1000M 10s")
		if err := w.nodes.Delete(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "goes"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(period)
		synctest.Wait()
		expect(t, "a node that is gone", w.top(c, "goes"), "")
		expect(t, "status", w.line(), "running: somebody asks, so kubelets are asked every 15s")
	})
}

// TestManyNodes: so many kubelets are asked at a time and no more, and those of nodes that are not ready keep nobody waiting.
func TestManyNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		hang := func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		for i := range 400 {
			name := fmt.Sprintf("node-%d", i)
			if k := w.node(name, i%4 != 0); i%4 == 0 {
				k.answer = hang
			}
		}
		c := w.run(t)
		began := time.Now()
		if got := w.top(c, "node-1"); got != "node-1 250m 1000M 10s" {
			t.Errorf("%q", got)
		}
		if took := time.Since(began); took > roundTimeout {
			t.Errorf("the first answer took %v of fake time", took)
		}
		if w.most > parallel || w.most < parallel/2 {
			t.Errorf("%d kubelets were asked at a time, want %d", w.most, parallel)
		}
		if n, failed := len(c.now.nodes), len(c.now.failed); n != 300 || failed != 100 {
			t.Errorf("figures of %d nodes, and %d failed; want 300 and 100", n, failed)
		}
		expect(t, "nodes that are not ready are no trouble of this part", w.line(), "running: somebody asks, so kubelets are asked every 15s")
		if got := w.top(c, "node-396"); !strings.Contains(got, "the kubelet of node node-396 does not answer") {
			t.Errorf("one of those that are not ready: %q", got)
		}
	})
}

// TestManyAsk: many that ask at once wait for one round.
func TestManyAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.node("one", true)
		c := w.run(t)
		var asking sync.WaitGroup
		for range 50 {
			asking.Go(func() {
				if got := w.top(c, "one"); got != "one 250m 1000M 10s" {
					t.Errorf("%q", got)
				}
			})
		}
		asking.Wait()
		if w.asked != 2 {
			t.Errorf("the kubelet was asked %d times, want twice", w.asked)
		}
	})
}

// TestStop: who waits for an answer hears that the server stops.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		k := w.node("one", true)
		k.answer = func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		c, err := New(Options{Nodes: corelisters.NewNodeLister(w.nodes), Pods: corelisters.NewPodLister(w.pods), Transport: w,
			AddressTypes: []corev1.NodeAddressType{corev1.NodeInternalIP}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go c.Run(ctx)
		time.AfterFunc(time.Second, cancel)
		expect(t, "while it waits", w.top(c, "one"), errStopping.Error())
		expect(t, "afterwards", w.top(c, "one"), errStopping.Error())
	})
}

func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := w.run(t)
		c.Elsewhere("kube-system/metrics-server")
		if got := w.line(); !strings.Contains(got, "running: the Service kube-system/metrics-server answers") {
			t.Errorf("%q", got)
		}
		c.Elsewhere("")
		expect(t, "back", w.line(), "running: at rest until somebody asks")
	})
}

// FuzzCounters: no answer of a kubelet ends the process.
func FuzzCounters(f *testing.F) {
	f.Add("node_cpu_usage_seconds_total 1 2\n")
	f.Add("container_cpu_usage_seconds_total{container=\"a\n")
	f.Add("container_memory_working_set_bytes{pod=\"\",namespace=\"\",container=\"\"} -1e308 -9\ncontainer_start_time_seconds NaN")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := newKubelets(fixed(text), []corev1.NodeAddressType{corev1.NodeInternalIP})
		if err != nil {
			t.Fatal(err)
		}
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}}
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b"}, Spec: corev1.PodSpec{NodeName: "one"}}
		before := k.round(t.Context(), []*corev1.Node{n}, []*corev1.Pod{p}, nil)
		for _, figures := range k.round(t.Context(), []*corev1.Node{n}, []*corev1.Pod{p}, before).pods {
			figures.metrics(&metav1.PartialObjectMetadata{})
		}
	})
}

// fixed answers always the same.
type fixed string

func (f fixed) RoundTrip(*http.Request) (*http.Response, error) {
	return says(http.StatusOK, string(f)), nil
}
