// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/server/tunnels"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// voices are the server's own node n0 and others, in fake time, each of which speaks every second at a moment of its
// own, as long as it does.
type voices struct {
	t      *testing.T
	client *fake.Clientset
	began  time.Time
	names  []string // but n0's
	phase  map[string]time.Duration
	stop   func() // ends the judge

	mu   sync.Mutex
	ends map[string]time.Time // what they said last, of those that have fallen silent
	back map[string]bool      // of these those that speak again, all the time
}

// newVoices has a judge judge so many nodes besides the server's own, each of the zone that zone says, for at least ten
// seconds. What check says takes as long as check says.
func newVoices(t *testing.T, r *rand.Rand, nodes int, zone func(i int) string, check func(node string) (time.Duration, Finding)) *voices {
	v := &voices{t: t, began: time.Now(), phase: map[string]time.Duration{}, ends: map[string]time.Time{}, back: map[string]bool{}}
	var objects []runtime.Object
	for i := range nodes + 1 {
		n := node(fmt.Sprintf("n%d", i))
		n.Labels = map[string]string{corev1.LabelTopologyZone: zone(i)}
		objects = append(objects, n, pod(n.Name))
		v.phase[n.Name] = time.Duration(r.IntN(1000)) * time.Millisecond
		if i > 0 {
			v.names = append(v.names, n.Name)
		}
	}
	v.client = fake.NewClientset(objects...)
	j := New(Options{
		Client: v.client, Nodes: lister{client: v.client}, Own: func(n string) bool { return n == "n0" }, Contact: v.contact, Recorder: &record.FakeRecorder{}, Logger: slog.New(slog.DiscardHandler),
		Check: func(_ context.Context, n *corev1.Node) Finding {
			v.mu.Lock() // of check's randomness, too
			took, found := check(n.Name)
			v.mu.Unlock()
			time.Sleep(took) // fake time
			return found
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { j.Run(ctx) })
	v.stop = func() { cancel(); running.Wait() }
	time.Sleep(10*time.Second + time.Duration(r.IntN(1000))*time.Millisecond) // fake time
	return v
}

func (v *voices) contact(name string) (tunnels.Contact, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	last, silent := v.ends[name]
	switch {
	case v.back[name]:
		last = time.Now()
	case !silent:
		last = v.tick(name)
	}
	return tunnels.Contact{Last: last, Open: true, Direct: true}, true
}

// tick is a node's last ping.
func (v *voices) tick(name string) time.Time {
	first := v.began.Add(v.phase[name])
	return first.Add(time.Since(first).Truncate(time.Second))
}

// mute has nodes say nothing any more.
func (v *voices) mute(names ...string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, name := range names {
		v.ends[name] = v.tick(name)
		if v.back[name] {
			v.ends[name] = time.Now()
		}
		delete(v.back, name)
	}
}

// speak has a node speak again.
func (v *voices) speak(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.back[name] = true
}

// want compares which nodes are Unknown, and on which nodes pods are not ready.
func (v *voices) want(when string, unknown, notReady []string) {
	v.t.Helper()
	w := &world{t: v.t, client: v.client, judge: New(Options{Nodes: lister{client: v.client}})}
	nodes, pods := w.lost()
	if !slices.Equal(nodes, slices.Sorted(slices.Values(unknown))) || !slices.Equal(pods, slices.Sorted(slices.Values(notReady))) {
		v.t.Errorf("%s: nodes %v are unknown and pods on %v not ready, want %v and %v", when, nodes, pods, unknown, notReady)
	}
}

func seeded(t *testing.T) *rand.Rand {
	seed := testenv.Seed(t)
	return rand.New(rand.NewPCG(seed, 0))
}

// eachItsOwn has every node in a zone of its own: upstream moves the pods of one that is lost.
func eachItsOwn(i int) string { return fmt.Sprint(i) }

// TestMassFailureThoughMachinesAnswer: programs that stop together on most nodes, or that cannot reach this server any
// more while their machines answer it, are judged together when their time is over.
func TestMassFailureThoughMachinesAnswer(t *testing.T) {
	r := seeded(t)
	for i := range 4 {
		nodes, atMost := 2+r.IntN(8), []time.Duration{1, CheckTimeout}[r.IntN(2)]
		inBubble(t, fmt.Sprint(i), func(t *testing.T) {
			v := newVoices(t, r, nodes, eachItsOwn, func(string) (time.Duration, Finding) {
				return CheckTimeout - time.Duration(r.Int64N(int64(atMost))), Reachable
			})
			defer v.stop()
			v.mute(v.names...)
			time.Sleep(slowDeath - time.Second) // fake time
			v.want("while they have time", nil, nil)
			time.Sleep(6 * time.Second) // fake time
			v.want("after that", nil, v.names)
			time.Sleep(evictionHold) // fake time
			v.want("after the wait", v.names, v.names)
		})
	}
}

// TestMassFailureWhileShortOfCPU: nor is one judged alone because others' checks were late.
func TestMassFailureWhileShortOfCPU(t *testing.T) {
	r := seeded(t)
	for i := range 6 {
		inBubble(t, fmt.Sprint(i), func(t *testing.T) {
			v := newVoices(t, r, 8, func(i int) string { return fmt.Sprint(i / 3) }, func(string) (time.Duration, Finding) {
				return CheckTimeout + time.Duration(r.IntN(2))*(lateBy+time.Millisecond), Unresponsive
			})
			defer v.stop()
			gone := v.names[2:]
			v.mute(gone...)
			time.Sleep(slowDeath) // fake time
			v.want("in the end", nil, gone)
		})
	}
}

// TestBackForAMoment: a node that comes back between two looks, has its pods ready again, and is gone at the next look,
// has died again.
func TestBackForAMoment(t *testing.T) {
	inBubble(t, "in fake time", func(t *testing.T) {
		v := newVoices(t, rand.New(rand.NewPCG(1, 0)), 1, eachItsOwn, func(string) (time.Duration, Finding) { return CheckTimeout, Unresponsive })
		defer v.stop()
		v.mute("n1")
		time.Sleep(4 * time.Second) // fake time
		v.want("after the death", []string{"n1"}, []string{"n1"})
		for range 2 * maxPause / time.Second {
			time.Sleep(maxPause + 500*time.Millisecond) // fake time, as all others; the judge looks after each rest
			v.speak("n1")
			testenv.Must(v.client.CoreV1().Pods("default").UpdateStatus(t.Context(), pod("n1"), metav1.UpdateOptions{}))(t)
			time.Sleep(100 * time.Millisecond) // fake time
			v.mute("n1")
			time.Sleep(2*maxPause + Quick) // fake time
			v.want("some time after it was back", []string{"n1"}, []string{"n1"})
		}
	})
}
