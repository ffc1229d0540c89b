// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-helpers/node/topology"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/server/tunnels"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// world is a cluster of the server's own node "own" and others, in fake time.
type world struct {
	t      *testing.T
	client *fake.Clientset
	judge  *NodeMonitor

	mu       sync.Mutex
	contacts map[string]tunnels.Contact
	silent   map[string]bool // says nothing any more
	finding  map[string]Finding
	checks   int
	checkFor time.Duration
	skew     time.Duration  // by how much the clock has jumped: a process that was paused sees that
	ownIsOff bool           // the server's own node does not run
	fails    map[string]int // so many updates of a resource's status fail
}

// update is a reactor of the fake API.
func (w *world) update(a clienttesting.Action) (bool, runtime.Object, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := a.GetResource().Resource; a.GetSubresource() == "status" && w.fails[r] > 0 {
		w.fails[r]--
		return true, nil, errors.New("no quorum")
	}
	return false, nil, nil
}

// checked is how many checks there were.
func (w *world) checked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.checks
}

// lister reads what the API has.
type lister struct {
	corelisters.NodeListerExpansion
	client *fake.Clientset
}

func (l lister) List(labels.Selector) (out []*corev1.Node, _ error) {
	all, err := l.client.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
	for i := range all.Items {
		out = append(out, &all.Items[i])
	}
	return out, err
}

func (l lister) Get(name string) (*corev1.Node, error) {
	return l.client.CoreV1().Nodes().Get(context.Background(), name, metav1.GetOptions{})
}

// All sleeps of this file are of a synctest bubble: they take no time, and end when every goroutine waits.

// live runs f in a world with so many nodes besides the server's own, each with a pod that is ready. All are connected
// and speak every second.
func live(t *testing.T, nodes int, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, contacts: map[string]tunnels.Contact{}, silent: map[string]bool{}, finding: map[string]Finding{}}
		var objects []runtime.Object
		for i := range nodes + 1 {
			name := fmt.Sprintf("n%d", i)
			if i == 0 {
				name = "own"
			}
			objects = append(objects, node(name), pod(name))
			w.contacts[name] = tunnels.Contact{Last: w.now(), Open: true, Direct: true}
		}
		w.client = fake.NewClientset(objects...)
		w.client.PrependReactor("update", "*", w.update)
		w.judge = New(Options{
			Client: w.client, Nodes: lister{client: w.client}, Own: w.own, Contact: w.contact, Check: w.check, Now: w.now,
			Recorder: &record.FakeRecorder{}, Logger: slog.New(slog.DiscardHandler),
		})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { w.judge.Run(ctx) })
		running.Go(func() { w.speak(ctx) })
		time.Sleep(10 * time.Second)
		w.want("at the beginning", nil, nil)
		f(w)
		cancel()
		running.Wait()
	})
}

func node(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, kind := range conditions[:3] { // one was never reported
		status := corev1.ConditionFalse
		if kind == corev1.NodeReady {
			status = corev1.ConditionTrue
		}
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: kind, Status: status, LastHeartbeatTime: metav1.Unix(5, 0)})
	}
	return n
}

func pod(node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "on-" + node}, Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

// now is the time in this world.
func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.skew)
}

func (w *world) contact(name string) (tunnels.Contact, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.contacts[name]
	return c, ok
}

func (w *world) own(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return name == "own" && !w.ownIsOff
}

func (w *world) check(_ context.Context, n *corev1.Node) Finding {
	w.mu.Lock()
	w.checks++
	took, found := w.checkFor, w.finding[n.Name]
	w.mu.Unlock()
	time.Sleep(max(took, CheckTimeout))
	return found
}

func (w *world) speak(ctx context.Context) {
	for ctx.Err() == nil {
		w.mu.Lock()
		for name, c := range w.contacts {
			if !w.silent[name] {
				c.Last = time.Now().Add(w.skew)
				w.contacts[name] = c
			}
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// label gives a Node labels.
func (w *world) label(name string, labels map[string]string) {
	w.t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err == nil {
		_, err = w.client.CoreV1().Nodes().Patch(w.t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	testenv.NoError(w.t, err)
}

// do changes the world.
func (w *world) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// want compares which nodes are Unknown, and on which nodes pods are not ready.
func (w *world) want(when string, nodes, pods []string) {
	w.t.Helper()
	if unknown, notReady := w.lost(); fmt.Sprint(unknown) != fmt.Sprint(nodes) || fmt.Sprint(notReady) != fmt.Sprint(pods) {
		w.t.Errorf("%s: nodes %v are unknown and pods on %v not ready, want %v and %v", when, unknown, notReady, nodes, pods)
	}
}

// lost are the nodes that are Unknown, and those on which pods are not ready.
func (w *world) lost() (unknown, notReady []string) {
	w.t.Helper()
	all := testenv.Must(w.judge.o.Nodes.List(nil))(w.t)
	for _, n := range all {
		if readyOf(n).Status == corev1.ConditionUnknown {
			unknown = append(unknown, n.Name)
		}
		p := testenv.Must(w.client.CoreV1().Pods("default").Get(w.t.Context(), "on-"+n.Name, metav1.GetOptions{}))(w.t)
		if p.Status.Conditions[0].Status == corev1.ConditionFalse {
			notReady = append(notReady, n.Name)
		}
	}
	return unknown, notReady
}

func TestDeadNodeIsFoundInSeconds(t *testing.T) {
	live(t, 5, func(w *world) {
		time.Sleep(10 * time.Minute)
		w.want("after ten quiet minutes", nil, nil)
		testenv.False(t, w.checked() > 0, "%d checks of nodes that speak", w.checked())
		w.do(func() { w.silent["n2"] = true })
		time.Sleep(3 * time.Second)
		w.want("three seconds after a death", []string{"n2"}, []string{"n2"})
		n := testenv.Must(w.judge.o.Nodes.Get("n2"))(t)
		testenv.True(t, len(n.Status.Conditions) == len(conditions), "conditions: %v", n.Status.Conditions)
		for _, c := range n.Status.Conditions {
			reason := "NodeStatusUnknown"
			if c.Type == conditions[3] {
				reason = "NodeStatusNeverUpdated"
			} else if c.LastHeartbeatTime.Unix() != 5 {
				t.Errorf("%s has another heartbeat: %v", c.Type, c.LastHeartbeatTime)
			}
			testenv.False(t, c.Status != corev1.ConditionUnknown || c.Reason != reason, "%s is %s, %s", c.Type, c.Status, c.Reason)
		}
		checks := w.checked()
		time.Sleep(time.Minute) // fake time
		testenv.False(t, w.checked() != checks, "%d checks of a node that is dead already", w.checked()-checks)
		// It comes back, its kubelet reports, and it dies again.
		w.do(func() { w.silent["n2"] = false })
		time.Sleep(10 * time.Second)
		testenv.Must(w.client.CoreV1().Nodes().UpdateStatus(t.Context(), node("n2"), metav1.UpdateOptions{}))(t)
		testenv.Must(w.client.CoreV1().Pods("default").UpdateStatus(t.Context(), pod("n2"), metav1.UpdateOptions{}))(t)
		time.Sleep(time.Minute) // fake time
		w.want("after the return", nil, nil)
		w.do(func() { w.silent["n2"] = true })
		time.Sleep(3 * time.Second)
		w.want("after the second death", []string{"n2"}, []string{"n2"})
	})
}

// TestOwnNodeThatIsOffDies: a server vouches for its own node only while the node runs.
func TestOwnNodeThatIsOffDies(t *testing.T) {
	live(t, 5, func(w *world) {
		w.do(func() {
			w.silent["own"] = true
			delete(w.contacts, "own") // no tunnel leads to one's own server
			w.finding["own"] = Reachable
		})
		time.Sleep(10 * time.Minute)
		w.want("while it runs", nil, nil)
		w.do(func() { w.ownIsOff = true })
		time.Sleep(2 * slowDeath)
		w.want("when it is off", []string{"own"}, []string{"own"})
	})
}

// A node that others hear, or whose machine answers, is not dead because it is silent here.
func TestNodeHeardByOthersIsNotDead(t *testing.T) {
	for _, tt := range []struct {
		name    string
		finding Finding
		contact tunnels.Contact
		before  time.Duration // it lives so long after its last word
		after   time.Duration // and is dead then; 0: never
	}{
		{name: "others hear it", finding: Connected, contact: tunnels.Contact{Direct: true}, before: time.Hour},
		{name: "its machine answers", finding: Reachable, contact: tunnels.Contact{Direct: true}, before: slowDeath - time.Second, after: slowDeath + 3*time.Second},
		{name: "no server could ever connect to it", before: quickFar - 100*time.Millisecond, after: quickFar + 2*time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			live(t, 3, func(w *world) {
				w.do(func() {
					tt.contact.Last = time.Now()
					w.silent["n1"], w.finding["n1"], w.contacts["n1"] = true, tt.finding, tt.contact
				})
				time.Sleep(tt.before)
				w.want("before", nil, nil)
				if tt.after > 0 {
					time.Sleep(tt.after - tt.before)
					w.want("after", []string{"n1"}, []string{"n1"})
				}
			})
		})
	}
}

// A node without a connection lives as long as its lease is renewed.
func TestUnconnectedNodeLivesByItsLease(t *testing.T) {
	for _, tt := range []struct {
		name    string
		lasts   time.Duration
		finding Finding
		dead    time.Duration // after the last renewal, at the latest
	}{
		{name: "upstream's lease", lasts: 40 * time.Second, dead: 75 * time.Second},
		{name: "upstream's lease, and the machine answers", lasts: 40 * time.Second, finding: Reachable, dead: 75 * time.Second},
		{name: "a slow lease", lasts: 10 * time.Minute, dead: 65 * time.Second},
		{name: "a slow lease, and the machine answers", lasts: 10 * time.Minute, finding: Reachable, dead: 14 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			live(t, 2, func(w *world) {
				// That no server can connect to it is no proof if its lease is renewed often.
				while := tt.finding
				if tt.lasts > slowDeath {
					while = Reachable
				}
				renew := func() {
					lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: "n1"}, Spec: coordinationv1.LeaseSpec{
						LeaseDurationSeconds: ptr.To(int32(tt.lasts.Seconds())), RenewTime: ptr.To(metav1.NowMicro()),
					}}
					leases := w.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
					if _, err := leases.Update(t.Context(), lease, metav1.UpdateOptions{}); err != nil {
						testenv.Must(leases.Create(t.Context(), lease, metav1.CreateOptions{}))(t)
					}
				}
				w.do(func() { delete(w.contacts, "n1"); w.finding["n1"] = while })
				for range 20 {
					renew()
					time.Sleep(tt.lasts / 4)
				}
				w.want("while the lease is renewed", nil, nil)
				w.do(func() { w.finding["n1"] = tt.finding })
				if tt.finding == Reachable {
					time.Sleep(tt.lasts / 2)
					w.want("soon after the last renewal", nil, nil)
				}
				time.Sleep(tt.dead)
				w.want("long after the last renewal", []string{"n1"}, []string{"n1"})
			})
		})
	}
}

// Writing goes on until all is written.
func TestFailedWritesAreRepeated(t *testing.T) {
	live(t, 3, func(w *world) {
		w.do(func() { w.fails = map[string]int{"nodes": 2, "pods": 4} })
		w.do(func() { w.silent["n3"] = true })
		time.Sleep(10 * time.Second)
		w.want("after writes that failed", []string{"n3"}, []string{"n3"})
		w.do(func() {
			testenv.False(t, w.fails["nodes"]+w.fails["pods"] > 0, "not tried: %v", w.fails)
		})
	})
}

// TestEvictionWaitsWhenMostVanish: when most nodes vanish together, and upstream would evict their pods, the Nodes are
// left alone for a while. A node that does not count for upstream's node lifecycle controller does not count here
// either, and who vanished long ago is none of those that vanish now.
func TestEvictionWaitsWhenMostVanish(t *testing.T) {
	six := map[string]string{"own": "a", "n1": "a", "n2": "b", "n3": "b", "n4": "b", "n5": "b", "n6": "c", "n7": "c", "n8": "c", "n9": "c", "n10": "c"}
	for _, tt := range []struct {
		name         string
		nodes        int // beside the server's own
		zones        map[string]string
		notReady     []string // says its kubelet, which is heard
		excluded     []string // from upstream's count, by a label
		before, die  []string // before: long before
		now          []string // unknown until the wait is over
		afterTheWait []string
	}{
		{name: "one of two", nodes: 1, die: []string{"n1"}, now: []string{"n1"}, afterTheWait: []string{"n1"}},
		{name: "two of three", nodes: 2, die: []string{"n1", "n2"}, afterTheWait: []string{"n1", "n2"}},
		{name: "two of five", nodes: 4, die: []string{"n1", "n2"}, now: []string{"n1", "n2"}, afterTheWait: []string{"n1", "n2"}},
		{name: "three of four, which upstream takes care of", nodes: 3, die: []string{"n1", "n2", "n3"},
			now: []string{"n1", "n2", "n3"}, afterTheWait: []string{"n1", "n2", "n3"}},
		{name: "two whole zones of three, whose pods upstream would move to the third", nodes: 5,
			zones: map[string]string{"own": "a", "n1": "a", "n2": "b", "n3": "b", "n4": "c", "n5": "c"},
			die:   []string{"n2", "n3", "n4", "n5"}, afterTheWait: []string{"n2", "n3", "n4", "n5"}},
		{name: "most of one zone, which upstream takes care of, and another one", nodes: 5,
			zones: map[string]string{"own": "a", "n1": "a", "n2": "a", "n3": "a", "n4": "b", "n5": "b"},
			die:   []string{"n1", "n2", "n3", "n4", "n5"}, now: []string{"n1", "n2", "n3"}, afterTheWait: []string{"n1", "n2", "n3", "n4", "n5"}},
		{name: "two zones, of one of which a node is not ready", nodes: 10, zones: six, notReady: []string{"n5"},
			die: []string{"n2", "n3", "n4", "n6", "n7", "n8", "n9", "n10"}, afterTheWait: []string{"n10", "n2", "n3", "n4", "n6", "n7", "n8", "n9"}},
		{name: "two zones, of one of which a node lives that upstream does not count", nodes: 10, zones: six, excluded: []string{"n5"},
			die: []string{"n2", "n3", "n4", "n6", "n7", "n8", "n9", "n10"}, afterTheWait: []string{"n10", "n2", "n3", "n4", "n6", "n7", "n8", "n9"}},
		{name: "a zone of those that are left when another has been off for long", nodes: 10, zones: map[string]string{
			"own": "a", "n1": "a", "n2": "b", "n3": "b", "n4": "b", "n5": "b", "n6": "c", "n7": "c", "n8": "c", "n9": "c", "n10": "c"},
			before: []string{"n6", "n7", "n8", "n9", "n10"}, die: []string{"n2", "n3", "n4", "n5"},
			now: []string{"n10", "n6", "n7", "n8", "n9"}, afterTheWait: []string{"n10", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			live(t, tt.nodes, func(w *world) {
				for name, zone := range tt.zones {
					labels := map[string]string{corev1.LabelTopologyZone: zone}
					if slices.Contains(tt.excluded, name) {
						labels["node.kubernetes.io/exclude-disruption"] = ""
					}
					w.label(name, labels)
				}
				for _, name := range tt.notReady {
					n := node(name)
					n.Labels = map[string]string{corev1.LabelTopologyZone: tt.zones[name]}
					readyOf(n).Status = corev1.ConditionFalse
					testenv.Must(w.client.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{}))(t)
				}
				w.do(func() {
					for _, name := range tt.before {
						w.silent[name] = true
					}
				})
				time.Sleep(evictionHold / 2)
				w.do(func() {
					for _, name := range tt.die {
						w.silent[name] = true
					}
				})
				dead := slices.Sorted(slices.Values(slices.Concat(tt.before, tt.die)))
				time.Sleep(4 * time.Second)
				w.want("at once", tt.now, dead)
				time.Sleep(evictionHold - 10*time.Second)
				w.want("a little before the end of the wait", tt.now, dead)
				time.Sleep(20 * time.Second)
				w.want("after it", tt.afterTheWait, dead)
			})
		})
	}
}

// TestNewJudgeAndLongDead: to a judge that has just begun, nodes that another one found dead long ago are none of those
// that vanish now. Those of a moment ago are: the leader may have gone with them.
func TestNewJudgeAndLongDead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		since time.Duration // the second zone is dead
		holds bool
	}{{"for long", time.Hour, false}, {"as long as it takes to elect a leader", 5 * time.Second, true}, {"by a clock that is ahead", -time.Minute, true}} {
		now := time.Now()
		j := New(Options{Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)})
		var nodes []*corev1.Node
		for i := range 9 {
			n := node(fmt.Sprintf("n%d", i))
			n.Labels = map[string]string{corev1.LabelTopologyZone: []string{"a", "b", "c"}[i/3]}
			if nodes = append(nodes, n); i < 3 {
				continue
			}
			j.nodes[n.Name] = &state{dead: now}
			if i < 6 {
				setUnknown(n, metav1.NewTime(now.Add(-tt.since)))
			}
		}
		j.suppressMassFailure(nodes)
		if held := !j.nodes["n8"].holdNodeTo.IsZero(); held != tt.holds {
			t.Errorf("with a zone that has been dead %s, the Nodes of another one that vanishes are held back: %v", tt.name, held)
		}
	}
}

// TestZoneStatesMatchUpstreams compares, in random clusters, what upstreamStops says with what upstream's own
// controller says of the same zones once the lost nodes are Unknown.
func TestZoneStatesMatchUpstreams(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	upstream := nodelifecycle.Controller{} // its threshold is zero, so that it says what is lost of a zone and whether that is all
	for range 3000 {
		var nodes []*corev1.Node
		lost, zones := map[string]bool{}, map[string][]*corev1.NodeCondition{}
		for i := range 1 + r.IntN(14) {
			n := node(fmt.Sprint(i))
			n.Labels = map[string]string{corev1.LabelTopologyZone: string(rune('a' + r.IntN(3)))}
			if r.IntN(8) == 0 {
				n.Labels[notCounted] = ""
			}
			if r.IntN(6) == 0 {
				readyOf(n).Status = []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionUnknown}[r.IntN(2)]
			}
			nodes = append(nodes, n)
			after := readyOf(n.DeepCopy())
			if lost[n.Name] = r.IntN(3) > 0; lost[n.Name] {
				after.Status = corev1.ConditionUnknown
			}
			if _, ok := n.Labels[notCounted]; !ok {
				key := topology.GetZoneKey(n)
				zones[key] = append(zones[key], after)
			}
		}
		gone, whole := map[string]int{}, map[string]bool{}
		all := true
		for key, conditions := range zones {
			n, state := upstream.ComputeZoneState(conditions)
			gone[key], whole[key] = n, state == "FullDisruption"
			all = all && whole[key]
		}
		stops := upstreamStops(nodes, func(n *corev1.Node) bool { return lost[n.Name] })
		for _, n := range nodes {
			key := topology.GetZoneKey(n)
			most := gone[key] > 2 && float32(gone[key])/float32(len(zones[key])) >= 0.55 // of ComputeZoneState, with the default threshold
			if want := all || most && !whole[key]; stops(n) != want {
				t.Fatalf("of node %s in %s with %d of %d lost it says %v; upstream says that the whole zone is lost: %v, and all zones are: %v", n.Name, key, gone[key], len(zones[key]), stops(n), whole[key], all)
			}
		}
	}
}

// What a server found out while it was short of CPU itself does not count.
func TestFindingsWhileShortOfCPUDoNotCount(t *testing.T) {
	live(t, 3, func(w *world) {
		w.do(func() { w.silent["n1"], w.checkFor = true, CheckTimeout+2*lateBy })
		time.Sleep(20 * time.Second)
		w.want("while every check is late", nil, nil)
		w.do(func() { w.checkFor = 0 })
		time.Sleep(4 * time.Second)
		w.want("when it has CPU again", []string{"n1"}, []string{"n1"})
	})
}

// A server that is short of CPU for good judges too, with upstream's patience: otherwise a dead node stayed ready for
// as long as its lease lasts.
func TestShortOfCPUForLong(t *testing.T) {
	live(t, 3, func(w *world) {
		w.do(func() { w.silent["n1"], w.checkFor = true, CheckTimeout+2*lateBy })
		time.Sleep(slowDeath - time.Second) // fake time, as what follows
		w.want("while others would wait, too", nil, nil)
		time.Sleep(5 * time.Second)
		w.want("after that", []string{"n1"}, []string{"n1"})
	})
}

// A node that no server can connect to cannot be checked: gossip's word does not shorten the time that it has.
func TestUncheckableNodeKeepsItsFullTime(t *testing.T) {
	live(t, 3, func(w *world) {
		w.do(func() {
			w.silent["n1"] = true
			c := w.contacts["n1"]
			c.Direct = false
			w.contacts["n1"] = c
		})
		w.judge.Suspect("n1")
		time.Sleep(quickFar / 2)
		w.want("while it has time", nil, nil)
		time.Sleep(quickFar)
		w.want("later", []string{"n1"}, []string{"n1"})
	})
}

// Who is suspected is checked at once, and lives if it speaks.
func TestSuspectedNodeIsCheckedAtOnce(t *testing.T) {
	live(t, 3, func(w *world) {
		w.do(func() { w.silent["n1"] = true })
		w.judge.Suspect("n1")
		w.judge.Suspect("n2")
		w.judge.Suspect("nobody")
		time.Sleep(CheckTimeout + 100*time.Millisecond)
		w.want("after a check", nil, []string{"n1"})
		time.Sleep(CheckTimeout) // fake time, as all others; the other one is checked
		w.want("when others have spoken", []string{"n1"}, []string{"n1"})
		testenv.Equal(t, w.checked(), 2, "checks:")
		time.Sleep(time.Minute) // fake time
		w.want("later", []string{"n1"}, []string{"n1"})
	})
}

// A server that was paused, alone, has heard no node, and its connections were closed. When it wakes, nodes get time to
// connect again; one that died meanwhile is noticed, and one that was dead stays so.
func TestPausedServerGivesNodesTime(t *testing.T) {
	for name, direct := range map[string]bool{"reached directly": true, "behind a router": false} {
		t.Run(name, func(t *testing.T) {
			live(t, 4, func(w *world) {
				w.do(func() { w.silent["n4"] = true })
				time.Sleep(5 * time.Second)
				w.want("before the pause", []string{"n4"}, []string{"n4"})
				w.do(func() {
					for _, name := range []string{"n1", "n2", "n3"} {
						w.silent[name] = true
						c := w.contacts[name]
						c.Direct = direct
						w.contacts[name] = c
						if direct {
							w.finding[name] = Reachable
						}
					}
					w.skew += time.Minute
				})
				time.Sleep(12 * time.Second)
				w.want("while they connect again", []string{"n4"}, []string{"n4"})
				w.do(func() { w.silent["n1"], w.silent["n2"] = false, false })
				time.Sleep(20 * time.Second)
				w.want("after they have", []string{"n4"}, []string{"n4"})
				time.Sleep(slowDeath)
				w.want("one has not", []string{"n3", "n4"}, []string{"n3", "n4"})
			})
		})
	}
}

// The same when the pause falls into a check.
func TestPausedInACheck(t *testing.T) {
	live(t, 3, func(w *world) {
		w.do(func() { w.silent["n1"], w.finding["n1"] = true, Reachable })
		time.Sleep(Quick + CheckTimeout/2 + 100*time.Millisecond)
		w.do(func() {
			for _, name := range []string{"n2", "n3"} {
				w.silent[name], w.finding[name] = true, Reachable
			}
			w.skew += time.Minute
		})
		time.Sleep(slowDeath - 5*time.Second)
		w.want("after the pause", nil, nil)
	})
}

// A Node that was deleted and is made again is not judged by what was heard of the one before.
func TestReturnOfADeletedNode(t *testing.T) {
	live(t, 3, func(w *world) {
		nodes := w.client.CoreV1().Nodes()
		w.do(func() { w.silent["n1"] = true })
		testenv.NoError(t, nodes.Delete(t.Context(), "n1", metav1.DeleteOptions{}))
		again := node("n1")
		again.UID = "another"
		for _, pause := range []time.Duration{0, time.Minute} { // between two looks of the judge, and much later
			time.Sleep(pause)
			testenv.Must(nodes.Create(t.Context(), again, metav1.CreateOptions{}))(t)
			time.Sleep(slowDeath / 2)
			w.want("while it has not connected yet", nil, nil)
			testenv.NoError(t, nodes.Delete(t.Context(), "n1", metav1.DeleteOptions{}))
		}
		again.UID = "a third"
		testenv.Must(nodes.Create(t.Context(), again, metav1.CreateOptions{}))(t)
		w.do(func() { w.silent["n1"] = false })
		time.Sleep(time.Minute) // fake time
		w.want("when it is connected", nil, nil)
		w.do(func() { w.silent["n1"] = true })
		time.Sleep(3 * time.Second)
		w.want("three seconds after its death", []string{"n1"}, []string{"n1"})
	})
}

// A node whose machine vanishes in the moment in which its Node is made has been heard before the judge saw it.
func TestDeathOfANewNode(t *testing.T) {
	live(t, 2, func(w *world) {
		time.Sleep(maxPause / 2)
		w.do(func() {
			w.silent["n9"] = true
			w.contacts["n9"] = tunnels.Contact{Last: time.Now(), Open: true, Direct: true}
		})
		_, err := w.client.CoreV1().Nodes().Create(t.Context(), node("n9"), metav1.CreateOptions{})
		if err == nil {
			_, err = w.client.CoreV1().Pods("default").Create(t.Context(), pod("n9"), metav1.CreateOptions{})
		}
		testenv.NoError(t, err)
		time.Sleep(maxPause + 2*time.Second)
		w.want("as soon as the judge has seen and checked it", []string{"n9"}, []string{"n9"})
	})
}

// What a new judge's server has heard long ago does not count; what it has heard a moment ago does.
func TestNewJudgeCountsRecentContactOnly(t *testing.T) {
	for last, doubtful := range map[time.Duration]bool{2 * time.Second: true, 10 * time.Minute: false} {
		now := time.Now()
		j := New(Options{Contact: func(string) (tunnels.Contact, bool) { return tunnels.Contact{Last: now.Add(-last), Direct: true}, true }})
		j.began = now
		silence, limit := j.timeSinceContact("n1", j.observe(node("n1"), now), now)
		if got := silence >= limit; got != doubtful {
			t.Errorf("heard %s before: silent for %s of %s", last, silence, limit)
		}
	}
}

// A node that dies while hundreds of others are silent whose machines answer, as agents that are restarted all
// together, is noticed as soon as where it is the only one.
func TestDeathAmidManySilent(t *testing.T) {
	const many = 8 * maxParallel
	live(t, many+1, func(w *world) {
		w.do(func() {
			for i := range many {
				name := fmt.Sprintf("n%d", i+1)
				w.silent[name], w.finding[name] = true, Reachable
			}
		})
		last := fmt.Sprintf("n%d", many+1)
		for range 5 { // at whatever moment of the others' checks
			time.Sleep(1300 * time.Millisecond) // fake time
			w.want("while many are silent", nil, nil)
		}
		w.do(func() { w.silent[last] = true })
		time.Sleep(Quick + 2*CheckTimeout + time.Second) // since its last word, its check, the one before it, and the pauses
		w.want("after the death", []string{last}, []string{last})
	})
}

// Nor does a node wait for all of them that has a longer time to be silent and is to be checked again: one that no
// server can connect to, and that others heard until it died.
func TestFarDeathAmidManySilent(t *testing.T) {
	const many = 6 * maxParallel
	live(t, many+1, func(w *world) {
		far := fmt.Sprintf("n%d", many+1)
		w.do(func() {
			w.silent[far], w.finding[far] = true, Connected
			c := w.contacts[far]
			c.Direct = false
			w.contacts[far] = c
		})
		time.Sleep(quickFar + 2*time.Second) // fake time, as all that follows
		w.do(func() {
			for i := range many {
				name := fmt.Sprintf("n%d", i+1)
				w.silent[name], w.finding[name] = true, Reachable
			}
		})
		time.Sleep(10 * time.Second)
		w.want("while many are silent", nil, nil)
		w.do(func() { w.finding[far] = Unresponsive })
		time.Sleep(recheckInterval + 8*(CheckTimeout+100*time.Millisecond)) // it is checked once in each turn
		w.want("after the death", []string{far}, []string{far})
	})
}

// However many nodes vanish together, they are judged together.
func TestSimultaneousFailuresAreJudgedAtOnce(t *testing.T) {
	const all = 6 * maxParallel
	live(t, all, func(w *world) { // and the server's own
		w.do(func() {
			for i := range all/2 + all/40 { // more than half, and too few for upstream to notice
				w.silent[fmt.Sprintf("n%d", i+1)] = true
			}
		})
		time.Sleep(time.Minute) // fake time
		nodes := testenv.Must(w.judge.o.Nodes.List(nil))(t)
		for _, n := range nodes {
			testenv.True(t, readyOf(n).Status != corev1.ConditionUnknown, "%s is Unknown, and its pods will be evicted", n.Name)
		}
	})
}

// slowly is an API that takes its time for each pod.
type (
	slowly     struct{ kubernetes.Interface }
	slowlyCore struct{ corev1client.CoreV1Interface }
	slowlyPods struct{ corev1client.PodInterface }
)

// CoreV1 implements kubernetes.Interface.
func (c slowly) CoreV1() corev1client.CoreV1Interface { return slowlyCore{c.Interface.CoreV1()} }

// Pods implements corev1client.CoreV1Interface.
func (c slowlyCore) Pods(namespace string) corev1client.PodInterface {
	return slowlyPods{c.CoreV1Interface.Pods(namespace)}
}

// UpdateStatus implements corev1client.PodInterface.
func (c slowlyPods) UpdateStatus(ctx context.Context, p *corev1.Pod, o metav1.UpdateOptions) (*corev1.Pod, error) {
	time.Sleep(30 * time.Millisecond) // fake time: what a memory card takes for a write
	return c.PodInterface.UpdateStatus(ctx, p, o)
}

// TestManyPodsOnASlowDisk: a node with as many pods as it may have is no later out of Services than one with few, and
// another one that dies meanwhile does not wait for it.
func TestManyPodsOnASlowDisk(t *testing.T) {
	live(t, 5, func(w *world) {
		for i := range 109 {
			p := pod("n1")
			p.Name = fmt.Sprintf("another-%d", i)
			testenv.Must(w.client.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{}))(t)
		}
		w.judge.o.Client = slowly{w.client}
		w.do(func() { w.silent["n1"] = true })
		time.Sleep(time.Second) // fake time
		w.do(func() { w.silent["n2"] = true })
		time.Sleep(2 * time.Second) // fake time
		pods := testenv.Must(w.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{}))(t)
		for _, p := range pods.Items {
			if p.Spec.NodeName == "n1" && p.Status.Conditions[0].Status != corev1.ConditionFalse {
				t.Errorf("pod %s is ready three seconds after the death", p.Name)
			}
		}
		time.Sleep(time.Second) // fake time
		w.want("three seconds after the other one's", []string{"n1", "n2"}, []string{"n1", "n2"})
	})
}
