// SPDX-License-Identifier: Apache-2.0

package term

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"runtime/pprof"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/buffer"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// None of the goroutines that go in and out of requests is missed, whenever the count is taken.
func TestCountMissesNoneThatMakesRequests(t *testing.T) {
	term := &Term{}
	var ctx context.Context
	term.tally, ctx = newTally(t.Context())
	round := term.tally.exempt(answersAtOnce{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		pprof.SetGoroutineLabels(ctx)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = round.RoundTrip(nil)
			}
		}
	})
	for term.tally.begun.Load() == 0 {
		runtime.Gosched()
	}
	for range 2000 {
		if l, err := term.tally.count(); err != nil || l.live == 0 {
			t.Fatalf("%+v, %v", l, err)
		}
	}
	close(stop)
	wg.Wait()
	if l, err := term.tally.count(); err != nil || l.live > 0 {
		t.Errorf("%+v, %v", l, err)
	}
}

type answersAtOnce struct{}

func (answersAtOnce) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("none") }

// TestListenersBuffersBeginEmpty: a buffer of upstream's size is 16 KB, and an idle server has some 200 of them.
func TestListenersBuffersBeginEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pods = 100
		client := fake.NewClientset()
		for i := range pods {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint(i)}}
			testenv.NoError(t, client.Tracker().Add(pod))
		}
		factory := informers.NewSharedInformerFactory(client, 0)
		informer := factory.Core().V1().Pods().Informer()
		seen := 0
		listener := testenv.Must(informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { seen++ }}))(t)
		testenv.NoError(t, emptyBuffers(factory))
		pending := testenv.Must(kubecompat.Field[buffer.TypedRingGrowing[any]](listener, []string{"pendingNotifications"}))(t)
		if pending.Cap() != 0 {
			t.Errorf("a buffer of %d places", pending.Cap())
		}
		ctx, cancel := context.WithCancel(t.Context())
		factory.StartWithContext(ctx)
		synctest.Wait()
		testenv.True(t, seen == pods, "the handler has seen %d of %d pods", seen, pods)
		cancel()
		factory.Shutdown()
	})
}
