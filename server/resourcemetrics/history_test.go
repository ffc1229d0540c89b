// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
	"sigs.k8s.io/metrics-server/pkg/storage"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestPackedNumbersAreCloseAndOrdered(t *testing.T) {
	testenv.Equal(t, unpack(pack(0)), 0, "none")
	testenv.True(t, pack(math.MaxUint64) != 0, "the largest")
	rapid.Check(t, func(r *rapid.T) {
		a, b := rapid.Uint64Range(0, maxValue).Draw(r, "a"), rapid.Uint64Range(0, 1<<20).Draw(r, "b")
		for _, v := range []uint64{a >> 10, b} {
			if got := unpack(pack(v)); math.Abs(float64(got)-float64(v)) > float64(v)/2048 {
				r.Fatalf("%d became %d", v, got)
			}
		}
		if a>>10 > b && unpack(pack(a>>10)) < unpack(pack(b)) {
			r.Fatalf("%d became %d, %d became %d", a>>10, unpack(pack(a>>10)), b, unpack(pack(b)))
		}
	})
}

// crowd is nodes with pods that all use the same.
type crowd struct {
	living
	figures *figures
}

func newCrowd() *crowd {
	return &crowd{living: living{namespaces: map[string]types.UID{"default": "first"}}, figures: newFigures(0)}
}

func use(millicores, bytes uint64) figure {
	return figure{rate: millicores * 1e6, window: time.Minute, point: storage.MetricsPoint{MemoryUsage: bytes}}
}

func (c *crowd) node(name string, pods int) {
	c.nodes = append(c.nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}})
	c.figures.nodes[name] = use(1000, 1<<30)
	for i := range pods {
		c.pod(node(name), fmt.Sprintf("%s-pod-%d", name, i), fmt.Sprintf("%s-%032d", name, i))
	}
}

type node string

func (c *crowd) pod(on node, name, uid string) {
	c.pods = append(c.pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(uid)}})
	c.figures.pods[types.NamespacedName{Namespace: "default", Name: name}] = podFigures{
		node: string(on), uid: types.UID(uid), containers: map[string]figure{"main": use(100, 64<<20), "sidecar": use(20, 16<<20)}}
}

func (c *crowd) gone(name string) {
	for i, p := range c.pods {
		if p.Name == name {
			c.pods = append(c.pods[:i:i], c.pods[i+1:]...)
			break
		}
	}
	delete(c.figures.pods, types.NamespacedName{Namespace: "default", Name: name})
}

// minutes records some, and checks after each that the history counts what it takes, and takes no more than it may.
func minutes(t *testing.T, h *history, from, to int, c *crowd) {
	t.Helper()
	for m := from; m < to; m++ {
		h.record(h.begun.Add(time.Duration(m)*historyPeriod+time.Second), c.figures, c.living)
		took := 0
		for _, s := range h.shares {
			own := 0
			for key, c := range s.curves {
				own += key.bytes() + len(c.chunks)*chunkBytes
			}
			testenv.Require(t, own == s.bytes, "a node's share is %d bytes, and is said to be %d", own, s.bytes)
			took += own
		}
		testenv.Require(t, took == h.bytes && took <= h.limit, "minute %d: %d bytes, said to be %d, of %d", m, took, h.bytes, h.limit)
	}
}

// shown returns a pod's curves as "FIRST MINUTE+POINTS", in the order of the response.
func shown(h *history, minute int, name string, in types.UID) string {
	var out []string
	for _, c := range h.read(h.begun.Add(time.Duration(minute)*historyPeriod), "default", name, in, historyPoints) {
		out = append(out, fmt.Sprintf("%v+%d", c.Start.Sub(h.begun.UTC().Round(time.Second)).Minutes(), len(c.CPU)))
	}
	return strings.Join(out, " ")
}

// TestHistoryOf200PodsTakesFourMegabytes: the day of 200 pods on four nodes, by the history's own count and the heap's.
func TestHistoryOf200PodsTakesFourMegabytes(t *testing.T) {
	c := newCrowd()
	for i := range 4 {
		c.node(fmt.Sprintf("node-%d", i), 50)
	}
	heap := func() int {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	h := newHistory(time.Now(), historyLimit)
	minutes(t, h, 0, historyPoints+600, c)
	took := heap() - before
	t.Logf("200 pods, a day: %d bytes, %d by the heap", h.bytes, took)
	testenv.True(t, h.bytes <= 4<<20 && took <= 4<<20, "%d bytes, %d by the heap", h.bytes, took)
	testenv.True(t, took <= h.bytes+64<<10, "the history counts %d bytes, and takes %d", h.bytes, took)
	testenv.Equal(t, shown(h, historyPoints+599, "node-2-pod-7", "first"), "600+1440", "the last day")
	got := h.read(h.begun.Add((historyPoints+599)*historyPeriod), "default", "node-2-pod-7", "first", 2)[0]
	text := string(testenv.Must(json.Marshal(got.CPU))(t)) + string(testenv.Must(json.Marshal(got.Memory))(t))
	testenv.Equal(t, text, "[120,120][83886080,83886080]", "the sums of the containers")
	runtime.KeepAlive(h)
	runtime.KeepAlive(c)
}

// TestNodeWithManyPodsLeavesOthersTheirDay: a node whose pods fill the history loses points itself, others keep their
// day.
func TestNodeWithManyPodsLeavesOthersTheirDay(t *testing.T) {
	c := newCrowd()
	c.node("honest", 20)
	h := newHistory(time.Now(), 1<<20)
	minutes(t, h, 0, 100, c)
	c.node("greedy", 5000)
	minutes(t, h, 100, 400, c)
	testenv.Equal(t, shown(h, 399, "honest-pod-3", "first"), "0+400", "a pod of another node")
	c.pod("honest", "late", "late-uid")
	minutes(t, h, 400, 402, c)
	testenv.Equal(t, shown(h, 401, "late", "first"), "400+2", "a new pod of another node gets its place")
	testenv.True(t, h.shares["greedy"].bytes > h.limit/2, "the node with many pods has %d bytes, as there is room", h.shares["greedy"].bytes)
}

// TestGoneGoFirst: a full history loses the pods that are gone before the hours of those that live, and then the oldest
// hour.
func TestGoneGoFirst(t *testing.T) {
	c := newCrowd()
	c.node("one", 3)
	c.pod("one", "brief", "brief-uid")
	h := newHistory(time.Now(), 8<<10)
	minutes(t, h, 0, 30, c)
	c.gone("brief")
	minutes(t, h, 30, 60, c)
	testenv.Equal(t, shown(h, 59, "brief", "first"), "0+30", "while there is room")
	minutes(t, h, 60, 600, c)
	testenv.Equal(t, shown(h, 599, "brief", "first"), "", "the pod that is gone")
	kept := shown(h, 599, "one-pod-1", "first")
	testenv.True(t, kept != "" && !strings.HasPrefix(kept, "0+"), "a pod that lives has lost its first hours: %s", kept)
}

// TestPodOfTheSameNameIsAnotherCurve: with another UID; and in another namespace of the same name none is shown.
func TestPodOfTheSameNameIsAnotherCurve(t *testing.T) {
	c := newCrowd()
	c.node("one", 0)
	c.pod("one", "db-0", "first-pod")
	h := newHistory(time.Now(), historyLimit)
	minutes(t, h, 0, 5, c)
	c.gone("db-0")
	c.pod("one", "db-0", "second-pod")
	minutes(t, h, 5, 8, c)
	testenv.Equal(t, shown(h, 7, "db-0", "first"), "0+5 5+3", "two pods")
	testenv.Equal(t, shown(h, 7, "db-0", "second"), "", "in a namespace that was made again")
	minutes(t, h, 7+historyPoints, 9+historyPoints, c)
	testenv.Equal(t, shown(h, 8+historyPoints, "db-0", "first"), "1447+2", "a day later")
}

// TestFigureOfAnotherPodOfTheNameIsNoPoint: the kubelet was asked about a pod that has been replaced meanwhile.
func TestFigureOfAnotherPodOfTheNameIsNoPoint(t *testing.T) {
	c := newCrowd()
	c.node("one", 0)
	c.pod("one", "db-0", "first-pod")
	c.pods[0] = c.pods[0].DeepCopy()
	c.pods[0].UID = "second-pod"
	h := newHistory(time.Now(), historyLimit)
	minutes(t, h, 0, 2, c)
	testenv.Equal(t, shown(h, 1, "db-0", "first"), "", "")
}

// TestHistoryIsRecordedWhileOneLeads: kubelets are asked once a minute; a minute without an answer is a gap; another
// term begins with its own first minute; none is kept after it.
func TestHistoryIsRecordedWhileOneLeads(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_ = w.namespaces.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", UID: "ns"}})
		k := w.node("one", true)
		pod := w.pod(k, "one", "web")
		c := w.run(t)
		lead := func() (end func()) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				c.RecordHistory(ctx)
			}()
			synctest.Wait()
			time.Sleep(time.Second) // of fake time: the kubelet takes some
			synctest.Wait()
			return func() { cancel(); <-done }
		}
		minute := func(seconds float64) {
			w.change(func() { k.at, k.cpu, pod.cpu = k.at.Add(time.Minute), k.cpu+10*seconds, pod.cpu+seconds })
			time.Sleep(time.Minute) // of fake time
			synctest.Wait()
		}
		curve := func(namespace, name string) string {
			got := c.ReadHistory(namespace, name, historyPoints)
			if !got.Enabled {
				return "disabled"
			}
			out := []string{}
			for _, curve := range got.Curves {
				out = append(out, string(testenv.Must(json.Marshal(curve.CPU))(t)))
			}
			return fmt.Sprintf("%s %v", got.Since.Format(time.TimeOnly), out)
		}
		expect(t, "before", curve("default", "web"), "disabled")
		asked := w.asked
		end := lead()
		expect(t, "the first minute, by the kubelet's own rate", curve("default", "web"), "00:00:00 [[20]]")
		minute(6)
		minute(12)
		broken := func(*http.Request) (*http.Response, error) { return nil, errors.New("it is away") }
		w.change(func() { k.answer = broken })
		minute(1)
		w.change(func() { k.answer = nil })
		minute(1)
		minute(3)
		expect(t, "a pod", curve("default", "web"), "00:00:00 [[20,100,200,null,20,50]]")
		expect(t, "its node", curve("", "one"), "00:00:00 [[250.08,1000.32,2000.64,null,250.08,500.16]]")
		expect(t, "a pod that is not there", curve("default", "other"), "00:00:00 []")
		expect(t, "a namespace that is not there", curve("away", "web"), "00:00:00 []")
		// Six rounds, and the kubelet's own rates at the first and after the gap.
		testenv.Equal(t, w.asked-asked, 8, "requests")
		testenv.True(t, strings.Contains(w.line(), "; the history of a day began at 2000-01-01T00:00:00Z and takes "), "%s", w.line())
		end()
		expect(t, "no longer the leader", curve("default", "web"), "disabled")
		expect(t, "at rest", w.line(), "running: idle until a client requests metrics")
		asked = w.asked
		time.Sleep(time.Hour) // of fake time
		testenv.Equal(t, w.asked, asked, "requests at rest")
		defer lead()()
		expect(t, "another term", curve("default", "web"), "01:05:01 [[20]]")
	})
}

// TestHistoryTakesWhatItCounts: pods that come and go at one node after the other leave nothing behind. Go's maps keep
// the size that they once had.
func TestHistoryTakesWhatItCounts(t *testing.T) {
	nodes := newCrowd()
	for n := range 12 {
		nodes.node(fmt.Sprintf("node-%d", n), 0)
	}
	heap := func() int {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	h := newHistory(time.Now(), historyLimit)
	for m := range 12 {
		c := newCrowd()
		c.nodes, c.figures.nodes = nodes.nodes, nodes.figures.nodes
		for i := range 13_000 {
			c.pod(node(fmt.Sprintf("node-%d", m)), fmt.Sprintf("pod-%d-%d", m, i), fmt.Sprintf("uid-%d-%d", m, i))
		}
		minutes(t, h, m, m+1, c)
	}
	took := heap() - before
	testenv.True(t, took <= h.limit*5/4, "the history counts %d bytes, and takes %d", h.bytes, took)
	runtime.KeepAlive(h)
	runtime.KeepAlive(nodes)
}

// TestRoomIsMadeForManyAtOnce: all curves of a node are looked at for it, and a minute may bring thousands of pods.
func TestRoomIsMadeForManyAtOnce(t *testing.T) {
	c := newCrowd()
	c.node("greedy", 5000)
	h := newHistory(time.Now(), 1<<20)
	minutes(t, h, 0, 1, c)
	before := h.bytes
	other := &nodeShare{curves: map[curveKey]*curve{}}
	testenv.Require(t, h.freeSpace(other, 0), "no room is made")
	testenv.True(t, before-h.bytes >= h.limit/roomParts, "room for %d bytes is made", before-h.bytes)
	h.shares["greedy"].bytes, other.bytes = 2*chunkBytes, chunkBytes
	before = h.bytes
	h.freeSpace(other, 0)
	testenv.True(t, before-h.bytes <= 2*(chunkBytes+curveBytes), "more than what is above the other's share is dropped: %d bytes", before-h.bytes)
}
