// SPDX-License-Identifier: Apache-2.0

package gossipmember

import (
	"errors"
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestKeysAreFollowedFromAList: a watch from the revision of a Secret that was written long ago is refused, for it is
// in no history any more.
func TestKeysAreFollowedFromAList(t *testing.T) {
	old := corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: GossipSecret, ResourceVersion: "7"}}
	testenv.NoError(t, putKeys(&old, clusterconfig.NewGossipKeys()))
	client, from := fake.NewClientset(), ""
	client.PrependReactor("list", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &corev1.SecretList{ListMeta: metav1.ListMeta{ResourceVersion: "900"}, Items: []corev1.Secret{old}}, nil
	})
	client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) { return true, &old, nil })
	client.PrependWatchReactor("secrets", func(a clienttesting.Action) (bool, watch.Interface, error) {
		from = a.(clienttesting.WatchActionImpl).ListOptions.ResourceVersion
		w := watch.NewFake()
		w.Stop()
		return true, w, nil
	})
	m := &Member{o: Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}, haveKeys: make(chan struct{})}
	testenv.NoError(t, m.watch(t.Context(), client))
	testenv.False(t, from != "900" || m.Keys() == nil, "watched from %q, want the list's 900; keys %v", from, m.Keys())
}

// TestKeysOfAnotherServerAreAskedForAfterAPause: what exists when it is to be made, and is in no list all the same,
// does not keep the API server and the store busy.
func TestKeysOfAnotherServerAreAskedForAfterAPause(t *testing.T) {
	client, lists := fake.NewClientset(), 0
	client.PrependReactor("list", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		if lists++; lists > 10 {
			return true, nil, errors.New("it is listed again and again")
		}
		return true, &corev1.SecretList{}, nil
	})
	client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewAlreadyExists(corev1.Resource("secrets"), GossipSecret)
	})
	m := &Member{o: Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}, haveKeys: make(chan struct{})}
	testenv.NoError(t, m.watch(t.Context(), client))
	testenv.Equal(t, lists, 1, "lists before Follow pauses:")
}
