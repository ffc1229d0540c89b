// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// BenchmarkFleet tells what one pod's life, and one report of a node's status, cost in processor time while so many
// nodes watch: each its own pods, as a kubelet does, and all nodes, as the pod network and the Service proxy do. The
// time is the whole process', which has the clients in it; these read and throw away.
func BenchmarkFleet(b *testing.B) {
	for _, cached := range []string{"nodes", "all"} {
		for _, nodes := range []int{10, 100, 1000} {
			b.Run(fmt.Sprintf("cache=%s/nodes=%d", cached, nodes), func(b *testing.B) {
				f := newFixture(b)
				o := f.options(b)
				o.WatchCache = cached == "all"
				o.ExtraArgs = []string{"disable-admission-plugins=ServiceAccount"} // nobody makes the namespace's account here
				r := f.start(b, o)
				c := testenv.Must(kubernetes.NewForConfig(r.admin()))(b)
				for _, what := range []string{"pods", "nodes"} {
					b.Run(what, func(b *testing.B) {
						w := r.watchAll(b, what, nodes)
						defer w.end()
						before, began := cpu(b), time.Now()
						for i := 0; b.Loop(); i++ {
							if what == "pods" {
								podsLife(b, c, fmt.Sprintf("p%d", i), fmt.Sprintf("n%d", i%nodes))
							} else {
								nodesReport(b, c, i)
							}
						}
						used := cpu(b) - before
						b.ReportMetric(used.Seconds()*1000/float64(b.N), "cpu-ms/op")
						b.ReportMetric(time.Since(began).Seconds()*1000/float64(b.N), "ms/op")
						b.ReportMetric(0, "ns/op")
					})
				}
			})
		}
	}
}

func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	testenv.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

type watches struct {
	answers []*http.Response
	wg      sync.WaitGroup
}

// watchAll opens one watch for each node, and waits until all are open.
func (r *running) watchAll(b *testing.B, what string, nodes int) *watches {
	b.Helper()
	h := testenv.Must(rest.HTTPClientFor(r.admin()))(b)
	w := &watches{}
	for i := range nodes {
		url := r.url + "/api/v1/" + what + "?watch=1&allowWatchBookmarks=1"
		if what == "pods" {
			url += fmt.Sprintf("&fieldSelector=spec.nodeName%%3Dn%d", i)
		}
		answer, err := h.Get(url)
		if err != nil || answer.StatusCode != http.StatusOK {
			b.Fatalf("watch %d: %v, %v", i, answer, err)
		}
		w.answers = append(w.answers, answer)
		w.wg.Go(func() { _, _ = io.Copy(io.Discard, answer.Body) }) // ends with an error when the body is closed
	}
	return w
}

func (w *watches) end() {
	for _, a := range w.answers {
		_ = a.Body.Close()
	}
	w.wg.Wait()
}

// podsLife is what the API server has of a pod's life: made, bound, running, deleted.
func podsLife(b *testing.B, c kubernetes.Interface, name, node string) {
	b.Helper()
	ctx, pods := b.Context(), c.CoreV1().Pods("default")
	no := false
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{AutomountServiceAccountToken: &no, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	_, err := pods.Create(ctx, p, metav1.CreateOptions{})
	if err == nil {
		err = pods.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}, metav1.CreateOptions{})
	}
	if err == nil {
		_, err = pods.Patch(ctx, name, types.StrategicMergePatchType, []byte(`{"status":{"phase":"Running"}}`), metav1.PatchOptions{}, "status")
	}
	if err == nil {
		err = pods.Delete(ctx, name, *metav1.NewDeleteOptions(0))
	}
	if err != nil {
		b.Fatal(err)
	}
}

// reportingNode is as large as the node of a kubelet that has fifty images.
func reportingNode(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for j := range 5 {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeConditionType(fmt.Sprintf("Condition%d", j)), Reason: "KubeletHasWhatItNeeds", Message: "kubelet has what it needs"})
	}
	for j := range 50 {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{fmt.Sprintf("registry.example/team/image-%d@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", j)}, SizeBytes: 1e8})
	}
	return n
}

// nodesReport is a kubelet's report of its node's status.
func nodesReport(b *testing.B, c kubernetes.Interface, i int) {
	b.Helper()
	ctx, nodes := b.Context(), c.CoreV1().Nodes()
	if i == 0 {
		n := reportingNode("n0")
		if _, err := nodes.Create(ctx, n, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			b.Fatal(err)
		}
	}
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","message":"%d"}]}}`, i)
	testenv.Must(nodes.Patch(ctx, "n0", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"))(b)
}

// BenchmarkFleetMemory tells what a store and an API server hold for 1,000 nodes with ten pods each, and with every
// node's watches.
func BenchmarkFleetMemory(b *testing.B) {
	const nodes, podsEach = 1000, 10
	for _, cached := range []string{"nodes", "all"} {
		b.Run("cache="+cached, func(b *testing.B) {
			for b.Loop() {
				f := newFixture(b)
				o := f.options(b)
				o.ExtraArgs = []string{"disable-admission-plugins=ServiceAccount"}
				o.WatchCache = cached == "all"
				r := f.start(b, o)
				c := testenv.Must(kubernetes.NewForConfig(r.admin()))(b)
				fresh := heap()
				var wg sync.WaitGroup
				for w := range 16 {
					wg.Go(func() {
						for i := w; i < nodes; i += 16 {
							fillNode(b, c, fmt.Sprintf("n%d", i), podsEach)
						}
					})
				}
				wg.Wait()
				full := heap()
				pods, all := r.watchAll(b, "pods", nodes), r.watchAll(b, "nodes", nodes)
				watched := heap()
				b.ReportMetric(float64(fresh)/1e6, "fresh-MB")
				b.ReportMetric(float64(full)/1e6, "filled-MB")
				b.ReportMetric(float64(watched)/1e6, "watched-MB")
				b.ReportMetric(float64(runtime.NumGoroutine()), "goroutines")
				b.ReportMetric(0, "ns/op")
				pods.end()
				all.end()
				r.stop()
			}
		})
	}
}

// heap is what is held, clients included.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// fillNode makes a node and its pods.
func fillNode(b *testing.B, c kubernetes.Interface, node string, pods int) {
	n := reportingNode(node)
	if _, err := c.CoreV1().Nodes().Create(b.Context(), n, metav1.CreateOptions{}); err != nil {
		b.Error(err)
		return
	}
	for i := range pods {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", node, i), Labels: map[string]string{"app": "web", "pod-template-hash": "5d4f8c7b9"}}}
		p.Spec = corev1.PodSpec{NodeName: node, AutomountServiceAccountToken: new(bool), Containers: []corev1.Container{{Name: "c", Image: "registry.example/team/web:1.2.3",
			Env: []corev1.EnvVar{{Name: "A", Value: "one"}, {Name: "B", Value: "two"}}, Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}}}
		if _, err := c.CoreV1().Pods("default").Create(b.Context(), p, metav1.CreateOptions{}); err != nil {
			b.Error(err)
			return
		}
	}
}
