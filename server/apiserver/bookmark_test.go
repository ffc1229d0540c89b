// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestQuietWatchOutlivesHistory: a client whose objects do not change hears now and then how far the store is, so that
// it goes on from there when its watch is over, also when what was there as it began is no history any more: of what is
// built in and of custom resources.
func TestQuietWatchOutlivesHistory(t *testing.T) {
	f := newFixtureOf(t, func(t testing.TB, f *fixture) servers {
		return servers{openStore(t, raftstore.Options{Dir: filepath.Join(f.dir, "store"), NodeID: "one", Logger: f.log, ProgressInterval: 50 * time.Millisecond})}
	})
	s := f.start(t, f.options(t))
	c, d := client(t, s.admin()), dynamicClient(t, s)
	testenv.Must(d.Resource(definitions).Create(t.Context(), object(t, boatDefinition), metav1.CreateOptions{}))(t)
	for _, tt := range []struct {
		name  string
		list  func() (metav1.ListInterface, error)
		watch func(metav1.ListOptions) (watch.Interface, error)
	}{
		{"built in",
			func() (metav1.ListInterface, error) {
				return c.CoreV1().PodTemplates("default").List(t.Context(), metav1.ListOptions{})
			},
			func(o metav1.ListOptions) (watch.Interface, error) {
				return c.CoreV1().PodTemplates("default").Watch(t.Context(), o)
			}},
		{"custom",
			func() (metav1.ListInterface, error) {
				return d.Resource(boats).Namespace("default").List(t.Context(), metav1.ListOptions{})
			},
			func(o metav1.ListOptions) (watch.Interface, error) {
				return d.Resource(boats).Namespace("default").Watch(t.Context(), o)
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var began string
			eventually(t, "a list", func() error { // a definition is served in a moment
				list, err := tt.list()
				if err == nil {
					began = list.GetResourceVersion()
				}
				return err
			})
			w := testenv.Must(tt.watch(metav1.ListOptions{ResourceVersion: began, AllowWatchBookmarks: true}))(t)
			defer w.Stop()
			other := testenv.Must(c.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "other-"}}, metav1.CreateOptions{}))(t)
			heard := bookmarkFrom(t, w, other.ResourceVersion)
			to := testenv.Must(strconv.ParseInt(other.ResourceVersion, 10, 64))(t)
			testenv.Must(f.store.Client().Compact(t.Context(), to))(t)
			again := testenv.Must(tt.watch(metav1.ListOptions{ResourceVersion: heard, AllowWatchBookmarks: true}))(t)
			defer again.Stop()
			if e := <-again.ResultChan(); e.Type != watch.Bookmark {
				t.Errorf("it goes on with %v", e)
			}
		})
	}
}

// bookmarkFrom waits for a bookmark of at least a version, and returns the bookmark's version.
func bookmarkFrom(t *testing.T, w watch.Interface, version string) string {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case e, ok := <-w.ResultChan():
			testenv.Require(t, ok && e.Type == watch.Bookmark, "instead of a bookmark: %v %v", e, ok)
			at := testenv.Must(meta.NewAccessor().ResourceVersion(e.Object))(t)
			var reported, want uint64
			testenv.Must(fmt.Sscan(at+" "+version, &reported, &want))(t)
			if reported >= want {
				return at
			}
		case <-late:
			t.Fatal("no bookmark of that version came")
		}
	}
}
