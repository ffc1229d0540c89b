// SPDX-License-Identifier: Apache-2.0

package definitions

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"

	"github.com/coracle-k8s/coracle/controllers/gateway/definitions/module"
	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func read(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	return testenv.Must(Read())(t)
}

// TestDefinitionsAreTheModules: the file is what go generate makes of the module that go.mod names.
func TestDefinitionsAreTheModules(t *testing.T) {
	text := testenv.Must(module.Read())(t)
	var want []map[string]any
	testenv.NoError(t, json.Unmarshal(text, &want))
	all := read(t)
	testenv.Require(t, len(all) == len(want),
		"there are %d definitions, the module has %d: go generate ./controllers/gateway/definitions", len(all), len(want))
	for i, u := range all {
		labels := u.GetLabels()
		if delete(labels, managedBy); len(labels) == 0 {
			labels = nil
		}
		u.SetLabels(labels)
		have := testenv.Must(json.Marshal(u.Object))(t)
		now := testenv.Must(json.Marshal(want[i]))(t)
		testenv.Equal(t, string(have), string(now), "%s is not the module's: go generate ./controllers/gateway/definitions:", u.GetName())
		if got := u.GetAnnotations()[versionAnnotation]; got != gateway.BundleVersion {
			t.Errorf("%s is of %s, what is served is %s", u.GetName(), got, gateway.BundleVersion)
		}
	}
}

func TestDefineLeavesOthersAlone(t *testing.T) {
	const name = "gateways.gateway.networking.k8s.io"
	gvr := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	for _, c := range []struct {
		name        string
		labels      map[string]string
		annotations map[string]string
		replaced    bool
	}{
		{"ours of before", map[string]string{managedBy: managerName, "other": "stays"}, map[string]string{versionAnnotation: "v1.5.1", channelAnnotation: "standard", "other": "stays"}, true},
		{"ours", map[string]string{managedBy: managerName}, map[string]string{versionAnnotation: gateway.BundleVersion, channelAnnotation: "standard"}, false},
		{"of a newer version, over ours", map[string]string{managedBy: managerName}, map[string]string{versionAnnotation: "v1.10.0", channelAnnotation: "standard"}, false},
		{"of the other channel, over ours", map[string]string{managedBy: managerName}, map[string]string{versionAnnotation: "v1.5.1", channelAnnotation: "experimental"}, false},
		{"a user's, of an older version", nil, map[string]string{versionAnnotation: "v1.0.0", channelAnnotation: "standard"}, false},
		{"a user's without a version, over ours", map[string]string{managedBy: managerName}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := &unstructured.Unstructured{}
			u.SetGroupVersionKind(gvr.GroupVersion().WithKind("CustomResourceDefinition"))
			u.SetName(name)
			u.SetLabels(c.labels)
			u.SetAnnotations(c.annotations)
			client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{gvr: "List"}, u)
			for range 2 {
				testenv.NoError(t, Define(t.Context(), client))
			}
			all, err := client.Resource(gvr).List(t.Context(), metav1.ListOptions{})
			testenv.Require(t, err == nil && len(all.Items) == len(read(t)), "there are %d definitions, %v", len(all.Items), err)
			have := testenv.Must(client.Resource(gvr).Get(t.Context(), name, metav1.GetOptions{}))(t)
			_, replaced := have.Object["spec"]
			testenv.Equal(t, replaced, c.replaced, "replaced:")
			if a := have.GetAnnotations(); replaced && (a[versionAnnotation] != gateway.BundleVersion || a["other"] != "stays") {
				t.Errorf("it has the annotations %v", a)
			}
			if !replaced && !maps.Equal(have.GetAnnotations(), c.annotations) {
				t.Errorf("it has the annotations %v", have.GetAnnotations())
			}
			testenv.NoError(t, Remove(t.Context(), client))
			_, err = client.Resource(gvr).Get(t.Context(), name, metav1.GetOptions{})
			testenv.Equal(t, apierrors.IsNotFound(err), (c.labels[managedBy] == managerName), "removed:")
		})
	}
}

func TestKindsThatAreServed(t *testing.T) {
	var names []string
	for _, u := range read(t) {
		names = append(names, u.GetName())
	}
	testenv.False(t, !slices.Contains(names, "httproutes.gateway.networking.k8s.io") || len(names) != 8, "the definitions are %v", names)
}
