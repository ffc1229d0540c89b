// SPDX-License-Identifier: Apache-2.0

package openapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/coracle-k8s/coracle/server/openapi"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// world is what a Handler under test sees.
type world struct {
	*openapi.Handler
	crds  []*apiextensionsv1.CustomResourceDefinition
	apis  []*apiregistrationv1.APIService
	fetch func(path string) (int, string) // an aggregated server
	asked []string
	now   time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{now: time.Unix(1e9, 0)}
	var err error
	w.Handler, err = openapi.New(openapi.Options{
		ServedPaths: []string{"/api/v1", "/apis/apps/v1", "/apis/batch/v1", "/apis/metrics.k8s.io/v1beta1", "/version"},
		CRDs:        func() ([]*apiextensionsv1.CustomResourceDefinition, error) { return w.crds, nil },
		APIServices: func() ([]*apiregistrationv1.APIService, error) { return w.apis, nil },
		Fetch: func(_ context.Context, api *apiregistrationv1.APIService, path string, _ http.Header) (*http.Response, error) {
			w.asked = append(w.asked, api.Name+path)
			status, body := w.fetch(path)
			if status == 0 {
				return nil, fmt.Errorf("%s", body)
			}
			return &http.Response{StatusCode: status, Status: http.StatusText(status), Header: http.Header{"Content-Type": {"application/json"}},
				Body: io.NopCloser(strings.NewReader(body))}, nil
		},
		Now:    func() time.Time { return w.now },
		Logger: slog.New(slog.DiscardHandler),
	})
	testenv.NoError(t, err)
	return w
}

func (w *world) get(path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, r)
	return rec
}

func (w *world) index(t *testing.T) map[string]string {
	t.Helper()
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	rec := w.get("/openapi/v3")
	testenv.NoError(t, json.Unmarshal(rec.Body.Bytes(), &index), "%d %s", rec.Code, rec.Body)
	urls := map[string]string{}
	for name, p := range index.Paths {
		urls[name] = p.ServerRelativeURL
	}
	return urls
}

func boat(generation int64) *apiextensionsv1.CustomResourceDefinition {
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "boats.example.com", UID: types.UID("u"), Generation: generation},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "example.com", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "boats", Kind: "Boat", ListKind: "BoatList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{
				{Name: "v1", Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
					Type: "object", Description: fmt.Sprintf("generation %d", generation),
				}}},
				{Name: "v0", Served: false},
			},
		},
		Status: apiextensionsv1.CustomResourceDefinitionStatus{Conditions: []apiextensionsv1.CustomResourceDefinitionCondition{
			{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue},
		}},
	}
}

// TestArtifactMatchesModule fails when go.mod moved on and go generate was not run.
func TestArtifactMatchesModule(t *testing.T) {
	w := newWorld(t)
	f := testenv.Must(os.Open("../../go.mod"))(t)
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) >= 2 && fields[0] == "k8s.io/kubernetes" {
			if fields[1] != w.File().Index.Kubernetes {
				t.Errorf("the documents are of %s, go.mod has %s: run go generate ./server/openapi", w.File().Index.Kubernetes, fields[1])
			}
			return
		}
	}
	t.Error("no k8s.io/kubernetes in go.mod")
}

// TestEveryDocumentIsWhole reads each embedded document in each form.
func TestEveryDocumentIsWhole(t *testing.T) {
	w := newWorld(t)
	for name, doc := range w.File().Index.Documents {
		data, err := w.File().Read(doc.JSON)
		testenv.True(t, err == nil && json.Valid(data), "%s: %v", name, err)
		if got := openapi.ContentHash(data); got != doc.Hash {
			t.Errorf("%s: content has hash %s, the index says %s", name, got, doc.Hash)
		}
		if data, err := w.File().Read(doc.Protobuf); err != nil || len(data) != doc.Protobuf.Size {
			t.Errorf("%s as protobuf: %d bytes, %v", name, len(data), err)
		}
	}
}

func TestIndexListsServedGroupsAndChangesWithCRDs(t *testing.T) {
	w := newWorld(t)
	w.crds = append(w.crds, boat(1))
	urls := w.index(t)
	for name, want := range map[string]bool{"api/v1": true, "apis/apps/v1": true, "apis/apps": true, "version": true, "apis/example.com/v1": true,
		"apis/example.com/v0": false, "apis/policy/v1": false, "logs": false} {
		if _, found := urls[name]; found != want {
			t.Errorf("%s: listed %v, want %v", name, found, want)
		}
	}
	first := w.get("/openapi/v3")
	if again := w.get("/openapi/v3", "If-None-Match", first.Header().Get("Etag")); again.Code != http.StatusNotModified {
		t.Errorf("the same index again: %d", again.Code)
	}
	w.crds[0] = boat(2)
	testenv.Equal(t, w.get("/openapi/v3", "If-None-Match", first.Header().Get("Etag")).Code, http.StatusOK, "after a change of the CRD:")
	if now := w.index(t); now["apis/example.com/v1"] == urls["apis/example.com/v1"] || now["apis/apps/v1"] != urls["apis/apps/v1"] {
		t.Error("the wrong hash changed")
	}
	w.crds[0].Status.Conditions = nil
	if _, found := w.index(t)["apis/example.com/v1"]; found {
		t.Error("a CRD that is not established is listed")
	}
}

func TestHashesInURLs(t *testing.T) {
	w := newWorld(t)
	w.crds = append(w.crds, boat(1))
	for _, name := range []string{"apis/apps/v1", "apis/example.com/v1"} {
		url := w.index(t)[name]
		rec := w.get(url)
		if rec.Code != http.StatusOK || !strings.Contains(rec.Header().Get("Cache-Control"), "immutable") || rec.Header().Get("Expires") == "" {
			t.Errorf("%s: %d, %v", url, rec.Code, rec.Header())
		}
		if again := w.get(url, "If-None-Match", rec.Header().Get("Etag")); again.Code != http.StatusNotModified || again.Body.Len() != 0 {
			t.Errorf("%s again: %d with %d bytes", url, again.Code, again.Body.Len())
		}
		old := w.get("/openapi/v3/" + name + "?hash=OLD")
		if old.Code != http.StatusMovedPermanently || old.Header().Get("Location") != url {
			t.Errorf("an old hash: %d to %s", old.Code, old.Header().Get("Location"))
		}
		if plain := w.get("/openapi/v3/" + name); plain.Code != http.StatusOK || plain.Header().Get("Cache-Control") != "" {
			t.Errorf("without a hash: %d, %v", plain.Code, plain.Header())
		}
	}
}

func TestContentTypeFollowsAccept(t *testing.T) {
	w := newWorld(t)
	for accept, want := range map[string]string{
		"":                 "application/json",
		"application/json": "application/json",
		"*/*":              "application/json",
		"application/com.github.proto-openapi.spec.v3@v1.0+protobuf":                  "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
		"application/com.github.proto-openapi.spec.v3.v1.0+protobuf":                  "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
		"application/com.github.proto-openapi.spec.v3@v1.0+protobuf,application/json": "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
	} {
		if rec := w.get("/openapi/v3/apis/apps/v1", "Accept", accept); rec.Code != http.StatusOK || rec.Header().Get("Content-Type") != want {
			t.Errorf("Accept %q: %d, %s", accept, rec.Code, rec.Header().Get("Content-Type"))
		}
	}
	testenv.Equal(t, w.get("/openapi/v3/apis/apps/v1", "Accept", "text/html").Code, http.StatusNotAcceptable, "text/html:")
	testenv.Equal(t, w.get("/openapi/v3/apis/policy/v1").Code, http.StatusNotFound, "a document of something not served:")
	r := httptest.NewRecorder()
	w.ServeHTTP(r, httptest.NewRequest(http.MethodPost, "/openapi/v2", nil))
	testenv.Equal(t, r.Code, http.StatusMethodNotAllowed, "POST:")
}

// v2 reads the v2 document in both forms and wants them to say the same.
func (w *world) v2(t *testing.T) *spec.Swagger {
	t.Helper()
	var doc spec.Swagger
	testenv.NoError(t, json.Unmarshal(w.get("/openapi/v2").Body.Bytes(), &doc))
	var binary openapi_v2.Document
	rec := w.get("/openapi/v2", "Accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")
	testenv.NoError(t, proto.Unmarshal(rec.Body.Bytes(), &binary))
	seen := map[string]bool{}
	for _, d := range binary.Definitions.AdditionalProperties {
		testenv.False(t, seen[d.Name], "%s is there twice as protobuf", d.Name)
		seen[d.Name] = true
	}
	for name := range doc.Definitions {
		testenv.True(t, seen[name], "no %s as protobuf", name)
	}
	if len(seen) != len(doc.Definitions) || len(binary.Paths.Path) != len(doc.Paths.Paths) || len(binary.Parameters.AdditionalProperties) != len(doc.Parameters) {
		t.Errorf("JSON and protobuf differ: %d/%d definitions, %d/%d paths, %d/%d parameters", len(doc.Definitions), len(seen),
			len(doc.Paths.Paths), len(binary.Paths.Path), len(doc.Parameters), len(binary.Parameters.AdditionalProperties))
	}
	if binary.Swagger != "2.0" || doc.Swagger != "2.0" || binary.Info.Title != doc.Info.Title || binary.Info.Version != doc.Info.Version {
		t.Errorf("heads differ: %v and %v", binary.Info, doc.Info)
	}
	return &doc
}

func TestV2HasCRDsAndMetrics(t *testing.T) {
	w := newWorld(t)
	without := w.v2(t)
	etag := w.get("/openapi/v2").Header().Get("Etag")
	w.crds = append(w.crds, boat(1))
	testenv.Equal(t, w.get("/openapi/v2", "If-None-Match", etag).Code, http.StatusOK, "with a CRD more:")
	with := w.v2(t)
	testenv.True(t, len(with.Definitions) == len(without.Definitions)+2,
		"a CRD brings %d definitions", len(with.Definitions)-len(without.Definitions))
	testenv.Equal(t, with.Definitions["com.example.v1.Boat"].Description, "generation 1", "Boat:")
	for _, kind := range []string{"NodeMetrics", "PodMetrics", "PodMetricsList", "ContainerMetrics"} {
		testenv.True(t, with.Definitions["io.k8s.metrics.pkg.apis.metrics.v1beta1."+kind].Description != "", "nothing is said of %s", kind)
	}
	for path, want := range map[string]bool{"/apis/apps/v1/": true, "/apis/metrics.k8s.io/v1beta1/nodes": true, "/apis/example.com/v1/boats": true, "/apis/policy/v1/": false, "/version/": true} {
		if _, found := with.Paths.Paths[path]; found != want {
			t.Errorf("path %s: %v, want %v", path, found, want)
		}
	}
}

func aggregated() *apiregistrationv1.APIService {
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: "v1.wharf.example.com", UID: "w", Generation: 1},
		Spec: apiregistrationv1.APIServiceSpec{Group: "wharf.example.com", Version: "v1",
			Service: &apiregistrationv1.ServiceReference{Namespace: "default", Name: "wharf"}},
		Status: apiregistrationv1.APIServiceStatus{Conditions: []apiregistrationv1.APIServiceCondition{
			{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue},
		}},
	}
}

const wharfV2 = `{"swagger":"2.0","info":{"title":"wharf","version":"1"},
 "paths":{"/apis/wharf.example.com/v1/piers":{"get":{"responses":{"200":{"description":"OK","schema":{"$ref":"#/definitions/com.example.Pier"}}}}},
          "/apis/other/v1/":{"get":{"responses":{"200":{"description":"OK"}}}}},
 "definitions":{"com.example.Pier":{"type":"object","properties":{"metadata":{"$ref":"#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}}},
                "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta":{"type":"object","description":"an older one"}}}`

func TestAggregatedAPIIsMergedAndCannotReplaceBuiltIns(t *testing.T) {
	w := newWorld(t)
	w.apis = append(w.apis, aggregated())
	w.fetch = func(path string) (int, string) {
		switch {
		case path == "/openapi/v3":
			return 200, `{"paths":{"apis/wharf.example.com/v1":{"serverRelativeURL":"/openapi/v3/apis/wharf.example.com/v1?hash=A"}}}`
		case strings.HasPrefix(path, "/openapi/v3/"):
			return 200, `{"openapi":"3.0.0","of":"` + path + `"}`
		}
		return 200, wharfV2
	}
	testenv.Equal(t, w.index(t)["apis/wharf.example.com/v1"], "/openapi/v3/apis/wharf.example.com/v1?hash=A", "listed at")
	if rec := w.get("/openapi/v3/apis/wharf.example.com/v1?hash=A"); rec.Code != 200 || !strings.Contains(rec.Body.String(), "hash=A") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	doc := w.v2(t)
	if _, found := doc.Paths.Paths["/apis/other/v1/"]; found {
		t.Error("another group's path was taken from the server")
	}
	pier, found := doc.Definitions["com.example.Pier"]
	metadata := pier.Properties["metadata"]
	if !found || !strings.HasPrefix(metadata.Ref.String(), "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta_") {
		t.Errorf("Pier: %v, metadata is %s", found, metadata.Ref.String())
	}
	testenv.True(t, doc.Definitions["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].Description != "an older one", "a built-in definition was replaced")

	asked := len(w.asked)
	w.index(t)
	w.v2(t)
	if len(w.asked) != asked {
		t.Errorf("asked again within a minute: %v", w.asked[asked:])
	}
	w.now = w.now.Add(2 * openapi.RemoteFresh)
	w.index(t)
	testenv.True(t, len(w.asked) != asked, "not asked again after a while")
	w.apis[0].Status.Conditions[0].Status = apiregistrationv1.ConditionFalse
	if _, found := w.index(t)["apis/wharf.example.com/v1"]; found {
		t.Error("an API that is not available is listed")
	}
}

// TestAggregatedWithoutV3 is a server older than OpenAPI v3.
func TestAggregatedWithoutV3(t *testing.T) {
	w := newWorld(t)
	w.apis = append(w.apis, aggregated())
	w.fetch = func(path string) (int, string) {
		if path == "/openapi/v2" {
			return 200, wharfV2
		}
		return 404, ""
	}
	url := w.index(t)["apis/wharf.example.com/v1"]
	rec := w.get(url)
	if url == "" || rec.Code != 200 || !strings.Contains(rec.Body.String(), `"openapi":"3.0.0"`) || !strings.Contains(rec.Body.String(), "com.example.Pier") {
		t.Errorf("%s: %d %.200s", url, rec.Code, rec.Body)
	}
}

func TestAggregatedThatFails(t *testing.T) {
	w := newWorld(t)
	w.apis = append(w.apis, aggregated())
	w.fetch = func(string) (int, string) { return 0, "connection refused" }
	if urls := w.index(t); len(urls) < 4 {
		t.Errorf("one broken server takes the index down: %v", urls)
	}
	w.v2(t)
	w.fetch = func(string) (int, string) { return 200, "no JSON" }
	w.now = w.now.Add(2 * openapi.RemoteFresh)
	w.index(t)
	w.v2(t)
}

// TestUsersServerReplacesABuiltInAPI has a server of the user's answer for an API that is built in: what both describe
// is there once.
func TestUsersServerReplacesABuiltInAPI(t *testing.T) {
	w := newWorld(t)
	without := w.v2(t)
	api := aggregated()
	api.Name, api.Spec.Group, api.Spec.Version = "v1beta1.metrics.k8s.io", "metrics.k8s.io", "v1beta1"
	w.apis = append(w.apis, api)
	w.fetch = func(string) (int, string) {
		return 200, `{"swagger":"2.0","info":{"title":"theirs","version":"1"},
 "paths":{"/apis/metrics.k8s.io/v1beta1/nodes":{"get":{"responses":{"200":{"description":"OK"}}}}},
 "definitions":{"io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics":{"type":"object"}}}`
	}
	with := w.v2(t)
	testenv.True(t, len(w.asked) != 0, "the server was not asked")
	if len(with.Paths.Paths) != len(without.Paths.Paths) || len(with.Definitions) != len(without.Definitions) {
		t.Errorf("%d paths and %d definitions, want %d and %d", len(with.Paths.Paths), len(with.Definitions), len(without.Paths.Paths), len(without.Definitions))
	}
}
