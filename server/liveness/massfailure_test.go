// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/server/tunnels"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMassFailureWheneverLastHeartbeat: nodes that vanish in one moment are judged together, though each had spoken at
// a moment of its own before, a check may end at once or last, and gossip may suspect them one after the other. No Node
// is marked, while pods are not ready soon. One that vanishes alone is marked soon, too.
func TestMassFailureWheneverLastHeartbeat(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 30 {
		zones := 3
		perZone := 1 + r.IntN(4)
		mass := r.IntN(3) > 0
		checkFor := []time.Duration{0, CheckTimeout / 2, CheckTimeout}[r.IntN(3)]
		suspects, far := r.IntN(2) == 0, r.IntN(3) == 0
		inBubble(t, fmt.Sprint(i), func(t *testing.T) {
			var objects []runtime.Object
			phase := map[string]time.Duration{}
			cut := time.Now().Add(20*time.Second + time.Duration(r.IntN(1000))*time.Millisecond)
			began := time.Now()
			var gone []string
			gones, direct := map[string]bool{}, map[string]bool{}
			for i := range zones * perZone {
				n := node(fmt.Sprintf("n%d", i))
				n.Labels = map[string]string{corev1.LabelTopologyZone: string(rune('a' + i/perZone))}
				objects = append(objects, n, pod(n.Name))
				direct[n.Name] = !far || r.IntN(2) == 0
				phase[n.Name] = time.Duration(r.IntN(1000)) * time.Millisecond
				if mass && i >= perZone || !mass && i == zones*perZone-1 {
					gone, gones[n.Name] = append(gone, n.Name), true
				}
			}
			client := fake.NewClientset(objects...)
			j := New(Options{
				Client: client, Nodes: lister{client: client}, Own: func(n string) bool { return n == "n0" }, Now: time.Now, Recorder: &record.FakeRecorder{}, Logger: slog.New(slog.DiscardHandler),
				Contact: func(name string) (tunnels.Contact, bool) {
					until := time.Now()
					if gones[name] && until.After(cut) {
						until = cut
					}
					ticks := (until.Sub(began) - phase[name]).Truncate(time.Second) // it speaks every second
					return tunnels.Contact{Last: began.Add(phase[name] + ticks), Open: true, Direct: direct[name]}, true
				},
				// Fake time: how long a check takes.
				Check: func(context.Context, *corev1.Node) Finding { time.Sleep(checkFor); return Unresponsive },
			})
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { j.Run(ctx) })
			time.Sleep(time.Until(cut))
			if suspects {
				for _, name := range gone {
					time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
					j.Suspect(name)
				}
			}
			time.Sleep(time.Until(cut.Add(Quick + CheckTimeout + 1500*time.Millisecond)))
			if suspects {
				time.Sleep(CheckTimeout)
			}
			if far {
				time.Sleep(quickFar)
			}
			w := &world{t: t, client: client, judge: j}
			unknown, notReady := w.lost()
			what := fmt.Sprintf("%d nodes a zone, %d vanish, a check takes %v, suspected: %v, some cannot be reached: %v", perZone, len(gone), checkFor, suspects, far)
			testenv.True(t, len(notReady) == len(gone), "%s: pods on %v are not ready", what, notReady)
			testenv.False(t, mass && len(unknown) > 0 || !mass && len(unknown) != len(gone), "%s: nodes %v are marked", what, unknown)
			cancel()
			running.Wait()
		})
	}
}

// inBubble runs f in fake time, as a test of its own.
func inBubble(t *testing.T, name string, f func(*testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}
