// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFirstRateIsTheKubelets: the first question is answered by the kubelet's own rate, later ones by what its counters
// did meanwhile.
func TestFirstRateIsTheKubelets(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		k := w.node("one", true)
		pod := w.pod(k, "one", "web")
		c := w.run(t)
		expect(t, "at rest", w.line(), "running: idle until a client requests metrics")
		expect(t, "the first answer", w.top(c, "one"), "one 250m 1000M 10s")
		expect(t, "the pod's first answer", w.topPod(t, c, "web"), "web/main 20m 10s")
		expect(t, "asked", w.line(), "running: clients ask, so kubelets are asked every 15s")

		w.change(func() { k.at, k.cpu, pod.cpu = k.at.Add(12*time.Second), k.cpu+6, pod.cpu+1.2 })
		nextRound()
		expect(t, "after a measurement", w.top(c, "one"), "one 500m 1000M 12s")
		expect(t, "the pod after a measurement", w.topPod(t, c, "web"), "web/main 100m 12s")
		time.Sleep(roundInterval)
		expect(t, "without another measurement", w.top(c, "one"), "one 500m 1000M 12s")
		testenv.True(t, k.summary == 1, "the kubelet was asked for its rates %d times, want once", k.summary)

		// The container and the machine start again.
		w.change(func() {
			k.at, k.cpu, k.rate = k.at.Add(30*time.Second), 1, 100e6
			pod.started, pod.cpu, pod.rate = k.at.Add(-20*time.Second), 4, 0
		})
		nextRound()
		expect(t, "a machine that has started again", w.top(c, "one"), "one 100m 1000M 10s")
		expect(t, "a container that was not measured twice", w.topPod(t, c, "web"), "web/main 200m 20s")
		testenv.True(t, k.summary == 2, "the kubelet was asked for its rates %d times, want twice", k.summary)
	})
}

// TestKubeletsArePolledOnlyOnDemand: kubelets are asked as long as a client asks, and not otherwise.
func TestKubeletsArePolledOnlyOnDemand(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.node("one", true)
		c := w.run(t)
		time.Sleep(time.Hour)
		testenv.True(t, w.asked == 0, "a kubelet was asked %d times though no client asked", w.asked)
		w.top(c, "one")
		time.Sleep(interestTime + 2*roundInterval)
		synctest.Wait()
		if want := int(interestTime/roundInterval) + 2; w.asked > want || w.asked < want-3 {
			t.Errorf("a kubelet was asked %d times after one question, want about %d", w.asked, want)
		}
		expect(t, "at rest again", w.line(), "running: idle until a client requests metrics")
		before := w.asked
		time.Sleep(24 * time.Hour)
		testenv.False(t, w.asked != before, "at rest a kubelet was asked %d times", w.asked-before)
		expect(t, "the next day", w.top(c, "one"), "one 250m 1000M 10s")
		for range 40 { // an autoscaler
			time.Sleep(roundInterval)
			w.top(c, "one")
		}
		if got := w.asked - before; got < 40 || got > 44 {
			t.Errorf("in ten minutes with an autoscaler a kubelet was asked %d times, want 42", got)
		}
	})
}

// TestBadKubeletDoesNotAffectOthers: whatever a kubelet does, the figures of the others are there, and what is wrong is
// said.
func TestBadKubeletDoesNotAffectOthers(t *testing.T) {
	answer := func(text string) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) { return response(http.StatusOK, text), nil }
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
		"refuses":            {func(*http.Request) (*http.Response, error) { return response(http.StatusForbidden, "no"), nil }, "Forbidden"},
		"says nothing":       {answer(""), "without any figures"},
		"is another server":  {answer("<html><body>welcome</body></html>\n"), "parsing"},
		"names no container": {answer("container_cpu_usage_seconds_total 1\n"), "is malformed"},
		"has broken labels":  {answer("container_cpu_usage_seconds_total{container=\"a\",namespace=\"b"), ""},
		"never ends": {func(*http.Request) (*http.Response, error) {
			r := response(http.StatusOK, "")
			r.Body = io.NopCloser(endless{})
			return r, nil
		}, "longer than 1032 KiB"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
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
				testenv.True(t, strings.HasPrefix(w.line(), "degraded: 1 of 2 kubelets"), "status: %q", w.line())
				w.change(func() { k.answer = nil })
				time.Sleep(2 * roundInterval)
				synctest.Wait()
				expect(t, "it is well again", w.top(c, "bad"), "bad 250m 1000M 10s")
				expect(t, "its pod", w.topPod(t, c, "lost"), "lost/main 20m 10s")
				expect(t, "status", w.line(), "running: clients ask, so kubelets are asked every 15s")
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

// TestImplausibleSummaryCostsFirstFiguresOnly: a summary that makes no sense costs the first figures and nothing else.
func TestImplausibleSummaryCostsFirstFiguresOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		k := w.node("one", true)
		pod := w.pod(k, "one", "web")
		k.answer = func(r *http.Request) (*http.Response, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if r.URL.Path == "/stats/summary" {
				return response(http.StatusOK, `{"node":{"cpu":null},"pods":[{"podRef":{},"containers":null}, {"containers":[{"cpu":{"usageNanoCores":7}}]}]}`), nil
			}
			return response(http.StatusOK, k.counters()), nil
		}
		c := w.run(t)
		expect(t, "before there is a rate", w.top(c, "one"), "")
		expect(t, "the pod", w.topPod(t, c, "web"), "")
		w.change(func() { k.at, k.cpu, pod.cpu = k.at.Add(10*time.Second), k.cpu+1, pod.cpu+1 })
		nextRound()
		expect(t, "after another measurement", w.top(c, "one"), "one 100m 1000M 10s")
		expect(t, "the pod", w.topPod(t, c, "web"), "web/main 100m 10s")
	})
}

// TestKubeletReportsItsOwnPodsOnly: a kubelet speaks for its own pods only.
func TestKubeletReportsItsOwnPodsOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		honest, liar := w.node("honest", true), w.node("liar", true)
		w.pod(honest, "honest", "web")
		liar.pods = []podUsage{
			{namespace: "default", name: "web", container: "main", started: time.Now().Add(-time.Hour), cpu: 1e6, memory: 1e6, rate: 64e9},
			{namespace: "default", name: "unheard-of", container: "main", started: time.Now().Add(-time.Hour), cpu: 1e6, memory: 1e6, rate: 64e9},
		}
		c := w.run(t)
		expect(t, "the pod", w.topPod(t, c, "web"), "web/main 20m 10s")
		testenv.True(t, len(c.current.pods) == 1, "figures of %d pods are kept, want 1", len(c.current.pods))
	})
}

// block is a kubelet that accepts a question and never answers.
func block(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// TestStuckKubeletDelaysNoOthers: while a kubelet is stalled, the figures of the others come as they do else; only
// those who ask for its own figures wait for it.
func TestStuckKubeletDelaysNoOthers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		stalled, fine := w.node("hung", true), w.node("fine", true)
		w.pod(stalled, "hung", "lost")
		pod := w.pod(fine, "fine", "web")
		stalled.answer = block
		c := w.run(t)
		began := time.Now()
		within := func(what string, most time.Duration) {
			t.Helper()
			if took := time.Since(began); took > most {
				t.Errorf("%s: after %v of fake time, want %v at most", what, took, most)
			}
		}
		expect(t, "the first answer", w.top(c, "hung", "fine"), "fine 250m 1000M 10s")
		within("the first answer", kubeletWait)
		expect(t, "the pod", w.topPod(t, c, "web"), "web/main 20m 10s")
		within("the pod", kubeletWait)
		const silent = "the kubelet of node hung does not answer: "
		if got := w.top(c, "hung"); !strings.Contains(got, silent) || strings.Contains(got, errNotYet.Error()) {
			t.Errorf("who asks for its figures waits until it is given up: %q", got)
		}
		within("the kubelet is given up", kubeletTimeout)
		testenv.Contains(t, w.topPod(t, c, "lost"), silent, "its pod:")

		// In later rounds the others' new figures do not wait for it either.
		w.change(func() { fine.at, fine.cpu, pod.cpu = fine.at.Add(10*time.Second), fine.cpu+5, pod.cpu+1 })
		time.Sleep(time.Until(began.Add(roundInterval + kubeletWait + time.Second))) // fake time: the second round has shown what it has
		expect(t, "the second round", w.top(c, "hung", "fine"), "fine 500m 1000M 10s")
		expect(t, "the pod", w.topPod(t, c, "web"), "web/main 100m 10s")
		testenv.True(t, strings.HasPrefix(w.line(), "degraded: 1 of 2 kubelets"), "status: %q", w.line())

		// One that has answered before has its old figures until it is given up.
		w.change(func() { stalled.answer = nil })
		time.Sleep(time.Until(began.Add(2*roundInterval + time.Second))) // fake time: it has answered in the third round
		w.change(func() { stalled.answer = block })
		time.Sleep(time.Until(began.Add(3*roundInterval + kubeletWait + time.Second))) // fake time: it is stalled in the fourth
		expect(t, "in the kubeletWait", w.top(c, "hung"), "hung 250m 1000M 10s")
		expect(t, "its pod", w.topPod(t, c, "lost"), "lost/main 20m 10s")
		time.Sleep(kubeletTimeout) // fake time, after which it is given up
		testenv.Contains(t, w.top(c, "hung"), silent, "given up:")
	})
}

// TestSingleSlowKubeletIsAwaited: a kubelet that is slower than the kubeletWait, and has no others beside it, is waited
// for.
func TestSingleSlowKubeletIsAwaited(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		k := w.node("slow", true)
		k.answer = func(r *http.Request) (*http.Response, error) {
			time.Sleep(kubeletWait + time.Second) // fake time: slower than others are made to wait
			w.mu.Lock()
			defer w.mu.Unlock()
			if r.URL.Path == "/stats/summary" {
				return response(http.StatusOK, k.ofRates()), nil
			}
			return response(http.StatusOK, k.counters()), nil
		}
		c := w.run(t)
		expect(t, "the first answer", w.top(c, "slow"), "slow 250m 1000M 10s")
		expect(t, "status", w.line(), "running: clients ask, so kubelets are asked every 15s")
	})
}

// TestRemovedNodesMetricsDisappear: what is gone from the cluster is gone from the figures.
func TestRemovedNodesMetricsDisappear(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.node("stays", true)
		k := w.node("goes", true)
		w.pod(k, "goes", "web")
		c := w.run(t)
		expect(t, "both", w.top(c, "goes", "stays"), "goes 250m 1000M 10s, stays 250m 1000M 10s")
		w.change(func() {
			k.answer = func(*http.Request) (*http.Response, error) { return nil, errors.New("no route to host") }
		})
		nextRound()
		expect(t, "one", w.top(c, "goes", "stays"), "stays 250m 1000M 10s")
		testenv.NoError(t, w.nodes.Delete(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "goes"}}))
		nextRound()
		expect(t, "a node that is gone", w.top(c, "goes"), "")
		expect(t, "status", w.line(), "running: clients ask, so kubelets are asked every 15s")
	})
}

// TestKubeletRequestsAreLimitedAtOnce: so many kubelets are asked at a time and no more, and those of nodes that are
// not ready keep no client waiting.
func TestKubeletRequestsAreLimitedAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i := range 400 {
			name := fmt.Sprintf("node-%d", i)
			if k := w.node(name, i%4 != 0); i%4 == 0 {
				k.answer = block
			}
		}
		c := w.run(t)
		began := time.Now()
		testenv.Equal(t, w.top(c, "node-1"), "node-1 250m 1000M 10s", "")
		if took := time.Since(began); took > kubeletWait {
			t.Errorf("the first answer took %v of fake time", took)
		}
		time.Sleep(roundTimeout) // fake time: those that are stalled take their turns still
		synctest.Wait()
		testenv.False(t, w.most > maxParallel || w.most < maxParallel/2, "%d kubelets were asked at a time, want %d", w.most, maxParallel)
		if n, failed := len(c.current.nodes), len(c.current.failed); n != 300 || failed != 100 {
			t.Errorf("figures of %d nodes, and %d failed; want 300 and 100", n, failed)
		}
		expect(t, "nodes that are not ready are no trouble of this part", w.line(), "running: clients ask, so kubelets are asked every 15s")
		testenv.Contains(t, w.top(c, "node-396"), "the kubelet of node node-396 does not answer", "one of those that are not ready:")
	})
}

// TestConcurrentRequestsShareARound: many that ask at once wait for one round.
func TestConcurrentRequestsShareARound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.node("one", true)
		c := w.run(t)
		var asking sync.WaitGroup
		for range 50 {
			asking.Go(func() {
				testenv.Equal(t, w.top(c, "one"), "one 250m 1000M 10s", "")
			})
		}
		asking.Wait()
		testenv.True(t, w.asked == 2, "the kubelet was asked %d times, want twice", w.asked)
	})
}

// TestWaitersEndWithTheServer: who waits for an answer hears that the server stops.
func TestWaitersEndWithTheServer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		k := w.node("one", true)
		k.answer = func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		c := testenv.Must(New(Options{Nodes: corelisters.NewNodeLister(w.nodes), Pods: corelisters.NewPodLister(w.pods), Transport: w,
			AddressTypes: []corev1.NodeAddressType{corev1.NodeInternalIP}}))(t)
		ctx, cancel := context.WithCancel(t.Context())
		go c.Run(ctx)
		time.AfterFunc(time.Second, cancel)
		expect(t, "while it waits", w.top(c, "one"), errStopping.Error())
		expect(t, "afterwards", w.top(c, "one"), errStopping.Error())
	})
}

func TestOtherProviderIsReported(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.run(t)
		c.SetOtherProvider("kube-system/metrics-server")
		testenv.Contains(t, w.line(), "running: the Service kube-system/metrics-server answers", "")
		c.SetOtherProvider("")
		expect(t, "back", w.line(), "running: idle until a client requests metrics")
	})
}

// FuzzCounters: no answer of a kubelet ends the process.
func FuzzCounters(f *testing.F) {
	f.Add("node_cpu_usage_seconds_total 1 2\n")
	f.Add("container_cpu_usage_seconds_total{container=\"a\n")
	f.Add("container_memory_working_set_bytes{pod=\"\",namespace=\"\",container=\"\"} -1e308 -9\ncontainer_start_time_seconds NaN")
	f.Fuzz(func(t *testing.T, text string) {
		k := testenv.Must(newKubelets(fixed(text), []corev1.NodeAddressType{corev1.NodeInternalIP}))(t)
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}}
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b"}, Spec: corev1.PodSpec{NodeName: "one", Containers: []corev1.Container{{Name: "a"}}}}
		early := func(*figures) {}
		before := k.readAll(t.Context(), []*corev1.Node{n}, []*corev1.Pod{p}, nil, early)
		for _, figures := range k.readAll(t.Context(), []*corev1.Node{n}, []*corev1.Pod{p}, before, early).pods {
			figures.metrics(&metav1.PartialObjectMetadata{})
		}
	})
}

// fixed answers always the same.
type fixed string

func (f fixed) RoundTrip(*http.Request) (*http.Response, error) {
	return response(http.StatusOK, string(f)), nil
}
