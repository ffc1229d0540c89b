// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

// All sleeps below are of fake time (inWorld).

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestImpossibleNumbersAreIgnored: numbers that cannot be are no figures, and neither change nor outlive those
// that can.
func TestImpossibleNumbersAreIgnored(t *testing.T) {
	for name, lie := range map[string]func(k *kubelet, p *podUsage){
		"no number":             func(k *kubelet, p *podUsage) { k.cpu, p.cpu = math.NaN(), math.NaN() },
		"negative":              func(k *kubelet, p *podUsage) { k.cpu, p.cpu = -1, -1 },
		"very negative":         func(k *kubelet, p *podUsage) { k.cpu, p.cpu = -1e300, -1e300 },
		"without end":           func(k *kubelet, p *podUsage) { k.cpu, p.cpu = math.Inf(1), math.Inf(1) },
		"very large":            func(k *kubelet, p *podUsage) { k.cpu, p.cpu = 1e300, 1e300 },
		"a thousand cores":      func(k *kubelet, p *podUsage) { k.cpu, p.cpu = k.cpu+15000, p.cpu+15000 },
		"memory, no number":     func(k *kubelet, p *podUsage) { k.memory, p.memory = math.NaN(), math.NaN() },
		"memory, negative":      func(k *kubelet, p *podUsage) { k.memory, p.memory = -1, -1 },
		"memory, too much":      func(k *kubelet, p *podUsage) { k.memory, p.memory = 1e12, 1e12 },
		"memory, no place left": func(k *kubelet, p *podUsage) { k.memory, p.memory = 1e300, 1e300 },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				k := w.node("one", true)
				pod := w.pod(k, "one", "web")
				honest := *k
				honestPod := *pod
				c := w.run(t)
				w.top(c, "one")
				step := func(cpu float64) {
					honest.at, honest.cpu, honestPod.cpu = honest.at.Add(roundInterval), honest.cpu+cpu, honestPod.cpu+cpu
					k.at, k.cpu, k.memory, pod.cpu, pod.memory = honest.at, honest.cpu, honest.memory, honestPod.cpu, honestPod.memory
				}
				w.change(func() { step(3); lie(k, pod) })
				nextRound()
				expect(t, "the node", w.top(c, "one"), "")
				expect(t, "the pod", w.topPod(t, c, "web"), "")
				for range 3 {
					w.change(func() { step(3) })
					nextRound()
				}
				expect(t, "the node, which reports the truth again", w.top(c, "one"), "one 200m 1000M 15s")
				expect(t, "its pod", w.topPod(t, c, "web"), "web/main 200m 15s")
			})
		})
	}
}

// TestKubeletsRatesAreBoundedByNode: what a kubelet says of its rates is measured by its node as well.
func TestKubeletsRatesAreBoundedByNode(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		k := w.node("one", true)
		pod := w.pod(k, "one", "web")
		k.rate, pod.rate = math.MaxUint64, 9e9
		c := w.run(t)
		expect(t, "the node", w.top(c, "one"), "")
		expect(t, "the pod", w.topPod(t, c, "web"), "")
		if impossible := c.current.impossible["one"]; !strings.HasPrefix(impossible, "the node reportedly uses 18446744074 CPU cores") {
			t.Errorf("what is said of it: %q", impossible)
		}
	})
}

// TestUnknownContainersAreIgnored: a pod has the containers that the API knows.
func TestUnknownContainersAreIgnored(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		k := w.node("one", true)
		pod := *w.pod(k, "one", "web")
		for i := range 1000 {
			pod.container = fmt.Sprint("made-up-", i)
			k.pods = append(k.pods, pod)
		}
		c := w.run(t)
		expect(t, "the pod", w.topPod(t, c, "web"), "web/main 20m 10s")
	})
}

// TestNodesClockStepKeepsRates: a node's clock is set, as that of a board without a battery is once it has a network.
func TestNodesClockStepKeepsRates(t *testing.T) {
	for _, step := range []time.Duration{50 * 365 * 24 * time.Hour, time.Hour, -time.Hour, -20 * 365 * 24 * time.Hour} {
		t.Run(step.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				k := w.node("one", true)
				pod := w.pod(k, "one", "web")
				c := w.run(t)
				w.top(c, "one")
				measure := func(step time.Duration) {
					w.change(func() { k.at, k.cpu, pod.cpu = k.at.Add(roundInterval+step), k.cpu+3, pod.cpu+1.5 })
					nextRound()
				}
				measure(0)
				expect(t, "before", w.top(c, "one"), "one 200m 1000M 15s")
				measure(step)
				expect(t, "the node's own rate when its clock is set", w.top(c, "one"), "one 250m 1000M 10s")
				expect(t, "the container's", w.topPod(t, c, "web"), "web/main 20m 10s")
				measure(0)
				expect(t, "after", w.top(c, "one"), "one 200m 1000M 15s")
				expect(t, "the pod after", w.topPod(t, c, "web"), "web/main 100m 15s")
			})
		})
	}
}

// TestKubeletThatCeasedToMeasureExpires: a kubelet that answers, and has ceased to measure, is not believed for ever.
func TestKubeletThatCeasedToMeasureExpires(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		k := w.node("one", true)
		w.pod(k, "one", "web")
		c := w.run(t)
		for range 6 {
			expect(t, "in the first minutes", w.top(c, "one"), "one 250m 1000M 10s")
			nextRound()
		}
		time.Sleep(staleAfter)
		synctest.Wait()
		expect(t, "the node later", w.top(c, "one"), "")
		expect(t, "the pod later", w.topPod(t, c, "web"), "")
		w.change(func() { k.at, k.cpu = k.at.Add(4*time.Minute), k.cpu+24 })
		nextRound()
		expect(t, "when it measures again", w.top(c, "one"), "one 100m 1000M 4m0s")
	})
}

// TestRedirectOfAKubeletIsNotFollowed: a kubelet does not choose what the API server asks with its rights.
func TestRedirectOfAKubeletIsNotFollowed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.node("victim", true)
		k := w.node("one", true)
		var paths []string
		k.answer = func(r *http.Request) (*http.Response, error) {
			paths = append(paths, r.URL.Path)
			resp := response(http.StatusFound, "")
			resp.Header.Set("Location", "https://192.0.0.1:10250/metrics/resource")
			return resp, nil
		}
		c := w.run(t)
		if got := w.top(c, "one"); !strings.Contains(got, "does not answer") || !strings.Contains(got, "Found") {
			t.Errorf("%q", got)
		}
		if w.asked != 3 { // the victim twice, as always
			t.Errorf("%d questions were asked, want 3", w.asked)
		}
		for _, path := range []string{"/exec/default/web/main", "/metrics/../exec", "/metrics/nodes/one/metrics/resource"} {
			o, _, _ := w.nodes.GetByKey("one")
			n := o.(*corev1.Node).DeepCopy()
			n.Annotations = map[string]string{"metrics.k8s.io/resource-metrics-path": path}
			testenv.NoError(t, w.nodes.Update(n))
			nextRound()
		}
		expect(t, "paths that were asked for", strings.Join(paths, " "), "/metrics/resource /metrics/resource /metrics/resource /metrics/nodes/one/metrics/resource")
	})
}

// TestKubeletsErrorsAreShortened: what a kubelet says instead of an answer is repeated in short.
func TestKubeletsErrorsAreShortened(t *testing.T) {
	line := strings.Repeat("\x1b[31m\xff", 100_000)
	for name, bad := range map[string]struct {
		code int
		text string
	}{
		"a line without an end": {http.StatusOK, line},
		"a name and no number":  {http.StatusOK, "node_cpu_usage_seconds_total " + strings.Repeat("x", 100_000) + "\n"},
		"a refusal":             {http.StatusForbidden, line},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				k := w.node("one", true)
				k.answer = func(*http.Request) (*http.Response, error) {
					r := response(bad.code, bad.text)
					r.Status = bad.text
					return r, nil
				}
				c := w.run(t)
				got := w.top(c, "one")
				if len(got) > 2*textLimit || strings.Contains(got, "\x1b") || !strings.Contains(got, "the kubelet of node one does not answer") {
					t.Errorf("%d bytes: %.500q", len(got), got)
				}
				testenv.False(t, len(w.line()) > 2*textLimit, "the status has %d bytes", len(w.line()))
			})
		})
	}
}

// TestAnswerSizeIsBoundedByPods: how much is read goes by how much there can be.
func TestAnswerSizeIsBoundedByPods(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		k := w.node("one", true)
		k.answer = func(r *http.Request) (*http.Response, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if r.URL.Path == "/stats/summary" {
				return response(http.StatusOK, k.ofRates()), nil
			}
			return response(http.StatusOK, strings.Repeat("# comment\n", minBodyLimit/10)+k.counters()), nil
		}
		c := w.run(t)
		if got := w.top(c, "one"); !strings.Contains(got, "longer than 1024 KiB") {
			t.Errorf("%q", got)
		}
		w.pod(k, "one", "web")
		nextRound()
		expect(t, "with a pod", w.top(c, "one"), "one 250m 1000M 10s")
	})
}
