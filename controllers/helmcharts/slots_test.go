// SPDX-License-Identifier: Apache-2.0

package helmcharts

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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	corelisters "k8s.io/client-go/listers/core/v1"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// crowd is a controller with charts whose children take their time, in a bubble of fake time: no sleep of this file
// takes any.
type crowd struct {
	*Controller
	t        *testing.T
	metadata *metadatafake.FakeMetadataClient

	mu    sync.Mutex
	takes map[string]time.Duration // how long a child is at work
	stuck map[string]bool          // whether it fails then
	began map[string]int           // by chart: how many children
	last  map[string]time.Time     // when the last one began
	made  map[string]bool          // releases
	work  map[bool]int             // children at work that look after objects, and others
	// waited is the longest that a chart waited for a place, and who was that.
	waited time.Duration
	who    string
}

// sample has a look at the controller's entries where it looks for a namespace itself: they are its loop's alone.
type sample struct {
	corelisters.NamespaceLister
	w *crowd
}

func (l sample) Get(name string) (*corev1.Namespace, error) {
	l.w.mu.Lock()
	for who, e := range l.w.entries {
		if d := time.Since(e.waits); !e.waits.IsZero() && d > l.w.waited {
			l.w.waited, l.w.who = d, who.Name
		}
	}
	l.w.mu.Unlock()
	return l.NamespaceLister.Get(name)
}

// inCrowd runs f beside a controller.
func inCrowd(t *testing.T, f func(*crowd)) {
	synctest.Test(t, func(t *testing.T) {
		w := &crowd{
			t: t, takes: map[string]time.Duration{}, stuck: map[string]bool{}, began: map[string]int{}, last: map[string]time.Time{}, made: map[string]bool{}, work: map[bool]int{},
		}
		objects := metadatafake.NewTestScheme()
		testenv.NoError(t, metav1.AddMetaToScheme(objects))
		w.metadata = metadatafake.NewSimpleMetadataClient(objects)
		client := fake.NewClientset()
		shared := informers.NewSharedInformerFactory(client, 0)
		testenv.NoError(t,
			shared.Core().V1().Namespaces().Informer().GetIndexer().Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "apps"}}))
		c := testenv.Must(New(Options{
			Client: client, Metadata: w.metadata, Informers: shared, Engine: w.helm, Logger: slog.New(slog.DiscardHandler),
			Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(scheme.Scheme, map[schema.GroupVersionResource]string{
				kinds.Charts().Resource: "HelmChartList", kinds.Configs().Resource: "HelmChartConfigList",
			}),
			Recorder: &record.FakeRecorder{},
		}))(t)
		w.Controller = c
		c.namespaces = sample{c.namespaces, w}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.loop(ctx)
			c.watches.stop()
			c.children.Wait()
		}()
		f(w)
		cancel()
		<-done
	})
}

// add makes a chart whose children take so long, and fail then or not. every is how often its objects are looked after,
// "" for never.
func (w *crowd) add(name string, takes time.Duration, stuck bool, every string) {
	w.t.Helper()
	w.mu.Lock()
	w.takes[name], w.stuck[name] = takes, stuck
	w.mu.Unlock()
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "helm.cattle.io/v1", "kind": "HelmChart", "spec": map[string]any{"chart": "oci://registry.example/" + name},
	}}
	u.SetNamespace("apps")
	u.SetName(name)
	u.SetUID(types.UID("uid of " + name))
	u.SetFinalizers([]string{Finalizer})
	if every != "" {
		u.SetAnnotations(map[string]string{ReconcileEvery: every})
	}
	testenv.NoError(w.t, w.objects.charts.GetStore().Add(u))
	w.wake.Send()
}

// helm is the engine.
func (w *crowd) helm(ctx context.Context, q *helmjob.Request) (*helmjob.Result, error) {
	w.mu.Lock()
	check := w.made[q.Release]
	w.work[check]++
	if w.work[true] > AtOnce-1 || w.work[true]+w.work[false] > AtOnce {
		w.t.Errorf("%d children are at work that look after objects, and %d others", w.work[true], w.work[false])
	}
	w.began[q.Release]++
	w.last[q.Release] = time.Now()
	takes, stuck := w.takes[q.Release], w.stuck[q.Release]
	w.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.work[check]--
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case stuck:
		return &helmjob.Result{Reason: helmjob.HookFailed, Message: "The hook is stalled.", TryAgain: true}, nil
	case check:
		return &helmjob.Result{Action: helmjob.Unchanged, Release: &helmjob.Release{Revision: 1, Status: deployed}}, nil
	}
	w.made[q.Release] = true
	secret := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{
		Namespace: q.Namespace, Name: "sh.helm.release.v1." + q.Release, Labels: map[string]string{
			labelOwner: ownerHelm, labelRelease: q.Release, labelRevision: "1", labelStatus: deployed,
		},
	}}
	if err := w.metadata.Tracker().Add(secret); err != nil {
		return nil, err
	}
	return &helmjob.Result{Action: helmjob.Installed, Release: &helmjob.Release{Revision: 1, Status: deployed}}, nil
}

// had is how many children a chart has had.
func (w *crowd) had(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.began[name]
}

// TestStuckHooksLeaveRoomForOthers: some charts cannot be installed, as what they need comes with another chart. That
// one has its turn, whatever its name is.
func TestStuckHooksLeaveRoomForOthers(t *testing.T) {
	inCrowd(t, func(w *crowd) {
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			w.add(name, 5*time.Minute, true, "")
		}
		time.Sleep(time.Hour) // fake time
		w.add("storage", time.Second, false, "")
		time.Sleep(20 * time.Minute) // fake time
		if w.had("storage") != 1 {
			w.t.Errorf("it was tried %d times to install a chart, beside others that are stalled", w.had("storage"))
		}
	})
}

// TestChecksThatTakeLong: while the objects of releases are looked after all the time, a new chart is installed at
// once, and each has its turn.
func TestChecksThatTakeLong(t *testing.T) {
	inCrowd(t, func(w *crowd) {
		names := []string{"a", "b", "c", "d", "e"}
		for _, name := range names {
			w.add(name, time.Minute, false, "1m")
		}
		time.Sleep(time.Hour) // fake time
		w.add("new", time.Second, false, "")
		time.Sleep(time.Second) // fake time
		if w.had("new") != 1 {
			w.t.Errorf("it was tried %d times to install a chart, beside others whose objects are looked after", w.had("new"))
		}
		time.Sleep(time.Hour)        // fake time
		for _, name := range names { // a place for sixty minutes twice, and five charts
			if n := w.had(name); n < 20 {
				w.t.Errorf("the objects of %s were looked after %d times in two hours", name, n)
			}
		}
	})
}

// TestNoChartWaitsForEver: charts of any kind; none waits longer than all others take together.
func TestNoChartWaitsForEver(t *testing.T) {
	for seed := range uint64(20) {
		inCrowd(t, func(w *crowd) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			const longest = 10 * time.Minute
			n := 3 + rnd.IntN(8)
			for i := range n {
				every := ""
				if rnd.IntN(2) == 0 {
					every = fmt.Sprintf("%dm", 1+rnd.IntN(30))
				}
				w.add(fmt.Sprintf("chart-%d", rnd.IntN(1000)*10+i), time.Duration(1+rnd.Int64N(int64(longest))), rnd.IntN(3) == 0, every)
				time.Sleep(time.Duration(rnd.Int64N(int64(longest)))) // fake time
			}
			time.Sleep(8 * time.Hour) // fake time
			w.mu.Lock()
			defer w.mu.Unlock()
			testenv.False(w.t, w.waited > time.Duration(n)*longest, "seed %d: %s has waited for %s", seed, w.who, w.waited)
		})
	}
}
