// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var (
	boats       = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "boats"}
	definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
)

func boat(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "Boat",
		"metadata": map[string]any{"name": name}, "spec": map[string]any{}}}
}

func dynamicClient(t *testing.T, s *running) dynamic.Interface {
	t.Helper()
	return testenv.Must(dynamic.NewForConfig(s.admin()))(t)
}

const boatDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.example.com}
spec:
  group: example.com
  names: {plural: boats, singular: boat, kind: Boat}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              seats: {type: integer, minimum: 1, default: 2, description: how many sit in it}
          status:
            type: object
            properties:
              afloat: {type: boolean}
`

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	testenv.NoError(t, yaml.Unmarshal([]byte(text), &u.Object))
	return u
}

func testCustomResources(t *testing.T, s *running) {
	ctx := t.Context()
	c := dynamicClient(t, s)
	testenv.Must(c.Resource(definitions).Create(ctx, object(t, boatDefinition), metav1.CreateOptions{}))(t)
	ns := namespace(t, client(t, s.admin()))
	in := c.Resource(boats).Namespace(ns)
	boat := object(t, "apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: a}\nspec: {}\n")
	eventually(t, "the first Boat", func() error {
		_, err := in.Create(ctx, boat, metav1.CreateOptions{})
		return err
	})
	got := testenv.Must(in.Get(ctx, "a", metav1.GetOptions{}))(t)
	if seats, _, _ := unstructured.NestedInt64(got.Object, "spec", "seats"); seats != 2 {
		t.Errorf("seats %d, want the default of 2", seats)
	}
	bad := object(t, "apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: b}\nspec: {seats: 0}\n")
	if _, err := in.Create(ctx, bad, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("no seats: %v, want invalid", err)
	}
	strict := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	unknown := object(t, "apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: b}\nspec: {sails: 3}\n")
	if _, err := in.Create(ctx, unknown, strict); !apierrors.IsBadRequest(err) {
		t.Errorf("an unknown field: %v, want a bad request", err)
	}
	applied := object(t, "apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: a}\nspec: {seats: 5}\n")
	got = testenv.Must(in.Apply(ctx, "a", applied, metav1.ApplyOptions{FieldManager: "test", Force: true}))(t)
	if seats, _, _ := unstructured.NestedInt64(got.Object, "spec", "seats"); seats != 5 {
		t.Errorf("seats %d after apply", seats)
	}
}

// get returns a path's body in a format, as the administrator.
func get(t *testing.T, s *running, path, accept string) []byte {
	t.Helper()
	rt := testenv.Must(rest.TransportFor(s.admin()))(t)
	req := testenv.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+path, nil))(t)
	req.Header.Set("Accept", accept)
	resp := testenv.Must((&http.Client{Transport: rt}).Do(req))(t)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	testenv.Require(t, err == nil && resp.StatusCode == http.StatusOK, "GET %s as %s: %s, %v", path, accept, resp.Status, err)
	return data
}

// testOpenAPI wants documents of built-in and custom resources in every form that clients ask for.
func testOpenAPI(t *testing.T, s *running) {
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	eventually(t, "the custom resource's document", func() error {
		if err := json.Unmarshal(get(t, s, "/openapi/v3", "application/json"), &index); err != nil {
			return err
		}
		if index.Paths["apis/example.com/v1"].ServerRelativeURL == "" {
			return fmt.Errorf("not among %d documents", len(index.Paths))
		}
		return nil
	})
	for name, want := range map[string]string{"apis/apps/v1": "io.k8s.api.apps.v1.Deployment", "apis/example.com/v1": "com.example.v1.Boat", "api/v1": "io.k8s.api.core.v1.Pod"} {
		var doc struct {
			Components struct{ Schemas map[string]any }
			Paths      map[string]any
		}
		url := index.Paths[name].ServerRelativeURL
		testenv.NoError(t, json.Unmarshal(get(t, s, url, "application/json"), &doc))
		testenv.False(t, doc.Components.Schemas[want] == nil || len(doc.Paths) == 0, "%s: no %s in it", name, want)
		var v3 openapi_v3.Document
		testenv.NoError(t, proto.Unmarshal(get(t, s, url, "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"), &v3))
		if got := len(v3.Components.Schemas.AdditionalProperties); got != len(doc.Components.Schemas) {
			t.Errorf("%s: %d schemas as protobuf, %d as JSON", name, got, len(doc.Components.Schemas))
		}
	}
	testenv.Equal(t, index.Paths["apis/resource.k8s.io/v1beta1"].ServerRelativeURL, "", "a group version that is not served has a document:")
	testOpenAPIV2(t, s)
}

func testOpenAPIV2(t *testing.T, s *running) {
	t.Helper()
	var v2 struct {
		Definitions, Paths map[string]any
		Info               struct{ Version string }
	}
	testenv.NoError(t, json.Unmarshal(get(t, s, "/openapi/v2", "application/json"), &v2))
	var doc openapi_v2.Document
	testenv.NoError(t, proto.Unmarshal(get(t, s, "/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"), &doc))
	for _, name := range []string{"io.k8s.api.core.v1.Pod", "com.example.v1.Boat", "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"} {
		testenv.True(t, v2.Definitions[name] != nil, "v2: no %s", name)
	}
	if a, b := len(v2.Definitions), len(doc.Definitions.AdditionalProperties); a != b {
		t.Errorf("v2: %d definitions as JSON, %d as protobuf", a, b)
	}
	if a, b := len(v2.Paths), len(doc.Paths.Path); a != b {
		t.Errorf("v2: %d paths as JSON, %d as protobuf", a, b)
	}
	if v2.Info.Version != doc.Info.Version || doc.Info.Version == "" || doc.Swagger != "2.0" {
		t.Errorf("v2: versions %q and %q, swagger %q", v2.Info.Version, doc.Info.Version, doc.Swagger)
	}
	if v2.Paths["/apis/resource.k8s.io/v1beta1/"] != nil || v2.Paths["/apis/apps/v1/"] == nil {
		t.Error("v2: the paths are not those of the served group versions")
	}
}
