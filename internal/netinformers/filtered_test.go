// SPDX-License-Identifier: Apache-2.0

package netinformers_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func running(obj any) bool {
	pod, ok := netinformers.Object(obj).(*corev1.Pod)
	return ok && pod.Status.Phase == corev1.PodRunning
}

// api holds pods and tells of them as the API does, whose connections break now and then for so long that clients have
// to list again.
type api struct {
	mu      sync.Mutex
	pods    map[string]*corev1.Pod
	version int
	oldest  int // the first version that can be watched from
	events  []event
	changed chan struct{} // closed with the next event
}

type event struct{ old, now *corev1.Pod }

func (a *api) change(r *rand.Rand) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	name := "p" + strconv.Itoa(r.IntN(6))
	old := a.pods[name]
	var now *corev1.Pod
	if old == nil || r.IntN(4) > 0 {
		now = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(strconv.Itoa(a.version)), ResourceVersion: strconv.Itoa(a.version)}}
		if old != nil {
			now.UID = old.UID
		}
		if r.IntN(2) == 0 {
			now.Status.Phase = corev1.PodRunning
		}
		a.pods[name] = now
	} else {
		delete(a.pods, name)
	}
	a.events = append(a.events, event{old, now})
	if r.IntN(80) == 0 {
		a.oldest = a.version
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// client is a list and a watch of all pods, or of those that run.
func (a *api) client(selects bool) cache.ListerWatcher {
	shows := func(p *corev1.Pod) bool { return p != nil && (!selects || running(p)) }
	return &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			list := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(a.version)}}
			for _, p := range a.pods {
				if shows(p) {
					list.Items = append(list.Items, *p.DeepCopy())
				}
			}
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil {
				return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Pod").GroupKind(), "", nil)
			}
			at, err := strconv.Atoi(o.ResourceVersion)
			if err != nil {
				return nil, err
			}
			out := make(chan watch.Event)
			ctx, cancel := context.WithCancel(ctx)
			go a.tell(ctx, at, shows, out)
			return stopped{watch.NewProxyWatcher(out), cancel}, nil
		},
	}
}

type stopped struct {
	*watch.ProxyWatcher
	cancel context.CancelFunc
}

func (s stopped) Stop() { s.cancel() }

func (a *api) tell(ctx context.Context, at int, shows func(*corev1.Pod) bool, out chan<- watch.Event) {
	defer close(out)
	send := func(what watch.EventType, obj runtime.Object) bool {
		select {
		case out <- watch.Event{Type: what, Object: obj}:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for {
		a.mu.Lock()
		next, oldest, changed := a.events[min(at, len(a.events)):], a.oldest, a.changed
		a.mu.Unlock()
		if at < oldest {
			status := apierrors.NewResourceExpired("too old").Status()
			send(watch.Error, &status)
			return
		}
		for _, e := range next {
			at++
			ok := true
			switch was, is := shows(e.old), shows(e.now); {
			case is && was:
				ok = send(watch.Modified, e.now.DeepCopy())
			case is:
				ok = send(watch.Added, e.now.DeepCopy())
			case was:
				last := e.old.DeepCopy()
				last.ResourceVersion = strconv.Itoa(at)
				ok = send(watch.Deleted, last)
			}
			if !ok {
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// recorder is which pods a handler knows, and what it should not have received.
type recorder struct {
	mu   sync.Mutex
	pods map[string]string
	odd  []string
}

func (o *recorder) handler() cache.ResourceEventHandler {
	set := func(what string, obj any, known bool) {
		pod := netinformers.Object(obj).(*corev1.Pod)
		o.mu.Lock()
		defer o.mu.Unlock()
		if _, ok := o.pods[pod.Name]; ok != known {
			o.odd = append(o.odd, what+" of "+pod.Name)
		}
		if o.pods[pod.Name] = string(pod.UID) + " at " + pod.ResourceVersion; what == "delete" {
			delete(o.pods, pod.Name)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { set("add", obj, false) },
		UpdateFunc: func(_, obj any) { set("update", obj, true) },
		DeleteFunc: func(obj any) { set("delete", obj, true) },
	}
}

func (o *recorder) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for name, what := range o.pods {
		out = append(out, name+" "+what)
	}
	slices.Sort(out)
	return fmt.Sprint(out, o.odd)
}

// TestAsWithASelector: handlers know in the end what they would know with a watch that has a selector, and hear of
// nothing as new that they know and of nothing as changed or gone that they do not, also where one update stands for
// several: a pod that ends to be shown and another of its name that begins to be, while the connection is broken.
func TestAsWithASelector(t *testing.T) {
	for range 4 { // side by side, as a client waits a second or more before it lists again
		t.Run("", func(t *testing.T) {
			t.Parallel()
			seed := testenv.Seed(t)
			asWithASelector(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func asWithASelector(t *testing.T, r *rand.Rand) {
	a := &api{pods: map[string]*corev1.Pod{}, changed: make(chan struct{})}
	all := cache.NewSharedIndexInformer(a.client(false), &corev1.Pod{}, 0, cache.Indexers{})
	selected := cache.NewSharedIndexInformer(a.client(true), &corev1.Pod{}, 0, cache.Indexers{})
	handlers := []*recorder{{pods: map[string]string{}}, {pods: map[string]string{}}, {pods: map[string]string{}}}
	add := func(i cache.SharedIndexInformer, h *recorder) {
		t.Helper()
		testenv.Must(i.AddEventHandler(h.handler()))(t)
	}
	add(selected, handlers[0])
	add(netinformers.Informer{all, running}, handlers[1])
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { all.RunWithContext(ctx) })
	wg.Go(func() { selected.RunWithContext(ctx) })
	defer wg.Wait()
	defer cancel()
	for i := range 400 {
		a.change(r)
		if i == 200 {
			add(netinformers.Informer{all, running}, handlers[2]) // that comes late
		}
		if r.IntN(3) == 0 {
			time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond) // so that some is seen one by one and some in one list
		}
	}
	var want []string
	a.mu.Lock()
	for name, p := range a.pods {
		if running(p) {
			want = append(want, name+" "+string(p.UID)+" at "+p.ResourceVersion)
		}
	}
	a.mu.Unlock()
	slices.Sort(want)
	for i, h := range handlers {
		testenv.Eventually(t, 2*time.Minute, fmt.Sprintf("handler %d has received", i), func() error {
			if got := h.String(); got != fmt.Sprint(want, []string(nil)) {
				return fmt.Errorf("of %s, want %s", got, want)
			}
			return nil
		})
	}
}
