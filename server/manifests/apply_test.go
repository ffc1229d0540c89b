// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// comingKinds are those that a cluster serves after a while.
type comingKinds struct {
	*meta.DefaultRESTMapper
	serves schema.GroupVersionKind
	at     time.Time
}

func (m *comingKinds) Reset() {
	if !m.serves.Empty() && !time.Now().Before(m.at) {
		m.Add(m.serves, meta.RESTScopeNamespace)
	}
}

// TestManifestsWaitForExpectedKinds: files wait for kinds that are on their way, but not for versions that are not, and
// once for all objects of a file.
func TestManifestsWaitForExpectedKinds(t *testing.T) {
	const text = `
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: a}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: b}
`
	route := schema.GroupKind{Group: "gateway.networking.k8s.io", Kind: "TLSRoute"}
	versions := []schema.GroupVersion{{Group: route.Group, Version: "v1"}, {Group: route.Group, Version: "v1beta1"}}
	for name, c := range map[string]struct {
		serves    string
		after, is time.Duration
		namespace string
	}{
		"served soon":                       {serves: "v1", after: 2 * time.Second, is: 2 * time.Second, namespace: "default"},
		"served soon in another version":    {serves: "v1beta1", after: 2 * time.Second, is: 2 * time.Second},
		"served already in another version": {serves: "v1beta1"},
		"never served":                      {is: crdTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				kinds := &comingKinds{DefaultRESTMapper: meta.NewDefaultRESTMapper(versions), at: time.Now().Add(c.after)}
				if c.serves != "" {
					kinds.serves = route.WithVersion(c.serves)
				}
				if c.after == 0 {
					kinds.Reset()
				}
				m := &Manifests{mapper: kinds, o: Options{Want: func(schema.GroupKind) bool { return true }}}
				began := time.Now()
				objects := testenv.Must(parse("f", []byte(text)))(t)
				testenv.NoError(t, testenv.Err(m.setNamespaces(t.Context(), objects)))
				testenv.Equal(t, time.Since(began), c.is, "it took")
				for _, o := range objects {
					testenv.Equal(t, o.GetNamespace(), c.namespace, "the namespace of %s:", o.GetName())
				}
			})
		})
	}
}
