// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/apis/core"
	eventstore "k8s.io/kubernetes/pkg/registry/core/event/storage"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// eventLimits are limits that a test sets.
type eventLimits struct {
	life    time.Duration
	refuse  string // the namespace that gets no events
	refused int
}

func (e *eventLimits) TTL(namespace string, usual time.Duration) (time.Duration, bool) {
	return min(usual, e.life), namespace == e.refuse
}

func (e *eventLimits) Refused() { e.refused++ }

// TestEventsAreLimited: events get the life that they may have, new ones and those that are updated. A namespace that
// is refused gets the code 429 for new ones, and no time to wait for.
func TestEventsAreLimited(t *testing.T) {
	f := newFixture(t)
	limits := &eventLimits{life: 10 * time.Minute, refuse: "loud"}
	events := testenv.Must(eventstore.NewREST(limitedEvents{cachingStorage{newPlainStorage()}, limits}, 3600))(t)
	t.Cleanup(events.DestroyFunc)
	in := func(namespace string) context.Context {
		info := &request.RequestInfo{IsResourceRequest: true, APIVersion: "v1", Resource: "events"}
		return request.WithNamespace(request.WithRequestInfo(t.Context(), info), namespace)
	}
	create := func(namespace, name string) error {
		_, err := events.Create(in(namespace), &core.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: name},
			InvolvedObject: core.ObjectReference{Namespace: namespace}, Reason: "Tested",
		}, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
		return err
	}
	testenv.NoError(t, create("quiet", "e"))
	life := func() int64 {
		t.Helper()
		kvs := testenv.Must(f.store.Client().KV.Get(t.Context(), "/registry/events/quiet/e"))(t).Kvs
		lease := testenv.Must(f.store.Client().TimeToLive(t.Context(), clientv3.LeaseID(kvs[0].Lease)))(t)
		return lease.GrantedTTL
	}
	if got := life(); got < 600 || got > 700 { // upstream lets events share a lease that is a little longer
		t.Errorf("a new event lives for %d s", got)
	}
	limits.life = time.Minute
	_, _, err := events.Update(in("quiet"), "e", rest.DefaultUpdatedObjectInfo(nil,
		func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			e := old.DeepCopyObject().(*core.Event)
			e.Count++
			return e, nil
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	testenv.NoError(t, err, "update")
	if got := life(); got < 60 || got > 130 {
		t.Errorf("an updated event lives for %d s", got)
	}
	err = create("loud", "e")
	if wait, given := apierrors.SuggestsClientDelay(err); !apierrors.IsTooManyRequests(err) || given && wait > 0 || limits.refused != 1 {
		t.Errorf("a refused namespace gets %v, counted %d times", err, limits.refused)
	}
}
