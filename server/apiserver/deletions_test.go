// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/apis/core"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// text returns a text of n random characters.
func text(n int) string {
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "%016x", rand.Uint64())
	}
	return b.String()[:n]
}

// TestDeletionsAtAFullQuota: when the store's quota is used up, objects with finalizers can be deleted, and their
// finalizers removed. Other changes are refused, and so is a step of a deletion that adds much.
func TestDeletionsAtAFullQuota(t *testing.T) {
	newFixtureOf(t, func(t testing.TB, f *fixture) servers {
		return servers{openStore(t, raftstore.Options{Dir: filepath.Join(f.dir, "store"), NodeID: "one", Logger: f.log, QuotaBytes: 4 << 20})}
	})
	store := newConfigMaps(t, deletions{cachingStorage{newPlainStorage()}})
	ctx := configMaps{}.in(t.Context(), "full")
	create := func(name string, size int) error {
		c := newConfigMap("full", name)
		c.Data, c.Finalizers = map[string]string{"data": text(size)}, []string{"example.com/wait"}
		_, err := store.Create(ctx, c, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
		return err
	}
	change := func(name string, do func(*core.ConfigMap)) error {
		_, _, err := store.Update(ctx, name, rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			c := old.DeepCopyObject().(*core.ConfigMap)
			do(c)
			return c, nil
		}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
		return err
	}
	testenv.NoError(t, create("first", 1000))
	for size := 100_000; size >= 100; size /= 10 {
		for i := 0; ; i++ {
			if err := create(fmt.Sprintf("fill-%d-%d", size, i), size); err != nil {
				testenv.Contains(t, err.Error(), "space exceeded", "filling up:")
				break
			}
		}
	}
	refused := func(what string, do func(*core.ConfigMap)) {
		t.Helper()
		if err := change("first", do); err == nil || !strings.Contains(err.Error(), "space exceeded") {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("a change", func(c *core.ConfigMap) { c.Data["data"] = text(1000) })
	_, _, err := store.Delete(ctx, "first", rest.ValidateAllObjectFunc, &metav1.DeleteOptions{})
	testenv.NoError(t, err, "delete")
	refused("a step that adds much", func(c *core.ConfigMap) { c.Data["data"] = text(3000) })
	testenv.NoError(t, change("first", func(c *core.ConfigMap) { c.Labels = map[string]string{"being": "deleted"} }), "a step")
	testenv.NoError(t, change("first", func(c *core.ConfigMap) { c.Finalizers = nil }), "the last finalizer")
	if _, err := store.Get(ctx, "first", &metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
}
