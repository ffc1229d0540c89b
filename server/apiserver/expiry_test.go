// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestContinueTokensExpire does what upstream's conformance suite does ("should continue listing from the last key if
// the original version has been compacted away, though the list is inconsistent"), with nothing else going on: a list
// that was begun can be continued for five minutes. Within ten it cannot, and the error has a token with which an
// inconsistent list goes on.
func TestContinueTokensExpire(t *testing.T) {
	clock := testingclock.NewFakeClock(time.Now())
	f := newFixtureOf(t, func(t testing.TB, f *fixture) servers {
		return servers{openStore(t, raftstore.Options{Dir: filepath.Join(f.dir, "store"), NodeID: "one", Logger: f.log, Clock: clock})}
	})
	r := f.start(t, f.options(t))
	maps := kubernetes.NewForConfigOrDie(r.admin()).CoreV1().ConfigMaps("default")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	const count, page = 40, 10
	create := func(name string) {
		t.Helper()
		testenv.Must(maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(t)
	}
	for i := range count {
		create(fmt.Sprintf("m-%02d", i))
	}
	first, err := maps.List(ctx, metav1.ListOptions{Limit: page})
	testenv.Require(t, err == nil && first.Continue != "" && *first.RemainingItemCount >= count-page, "the first page: %v, %v", first, err)
	// What is made meanwhile is not in a list that is consistent.
	create("m-zz")

	f.fiveMinutes(t, clock)
	second, err := maps.List(ctx, metav1.ListOptions{Limit: page, Continue: first.Continue})
	if err != nil || second.ResourceVersion != first.ResourceVersion {
		t.Fatalf("the second page, five minutes later: version %s after %s, %v", second.ResourceVersion, first.ResourceVersion, err)
	}
	f.fiveMinutes(t, clock)
	_, err = maps.List(ctx, metav1.ListOptions{Limit: page, Continue: second.Continue})
	testenv.Require(t, apierrors.IsResourceExpired(err), "ten minutes later: %v, want 410", err)
	status, ok := err.(apierrors.APIStatus)
	testenv.Require(t, ok && status.Status().Continue != "", "the error has no token to go on with: %#v", err)
	names, version := f.rest(ctx, t, maps, status.Status().Continue, page)
	if version == first.ResourceVersion || len(names) < count-2*page+1 || names["m-19"] || !names["m-20"] || !names["m-39"] || !names["m-zz"] {
		t.Errorf("the inconsistent list goes on at version %s with %v", version, names)
	}
}

// fiveMinutes lets as much time pass for the store, and waits until it has done what it does then: it sets a mark, and
// compacts to the one before.
func (f *fixture) fiveMinutes(t *testing.T, clock *testingclock.FakeClock) {
	t.Helper()
	mark := func() (revision int64, err error) {
		got, err := f.store.Client().KV.Get(t.Context(), "compact_rev_key")
		if err == nil && len(got.Kvs) > 0 {
			revision = got.Kvs[0].ModRevision
		}
		return revision, err
	}
	before := testenv.Must(mark())(t)
	clock.Step(5 * time.Minute)
	eventually(t, "a mark and a compaction", func() error {
		now, err := mark()
		if compacted := f.store.Status().Compacted; err == nil && (now == before || compacted < before) {
			err = fmt.Errorf("the mark is of revision %d and was of %d, and the history begins after %d", now, before, compacted)
		}
		return err
	})
}

// rest continues a list to its end.
func (f *fixture) rest(ctx context.Context, t *testing.T, maps typedv1.ConfigMapInterface, token string, page int64) (names map[string]bool, version string) {
	t.Helper()
	names = map[string]bool{}
	for token != "" {
		list := testenv.Must(maps.List(ctx, metav1.ListOptions{Limit: page, Continue: token}))(t)
		for _, m := range list.Items {
			names[m.Name] = true
		}
		token, version = list.Continue, list.ResourceVersion
	}
	return names, version
}
