// SPDX-License-Identifier: Apache-2.0

package openapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistrationhelper "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper"
	"k8s.io/kube-openapi/pkg/aggregator"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/openapiconv"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

const (
	// remoteFresh is how long responses of an aggregated server are cached. Upstream requests as often.
	remoteFresh = time.Minute
	// remoteTimeout limits the wait for an aggregated server.
	remoteTimeout = 5 * time.Second
	// remoteLimit is the largest accepted document of an aggregated server, in bytes.
	remoteLimit = 32 << 20
)

// remotes caches the documents of aggregated API servers.
type remotes struct {
	options Options

	mu     sync.Mutex // held while fetching: requests of the same minute share a response
	byName map[string]*remote
}

// remote is the cache of one aggregated API.
type remote struct {
	generation string // of the APIService through which the rest was fetched
	indexTime  time.Time
	paths      map[string]string // v3 documents: name to URL
	converted  bool              // the server has only v2; its v3 document is made from that

	v2Time time.Time
	v2ETag string
	v2     []byte // JSON; nil when the server has none
}

// documentV2 is an aggregated server's v2 document.
type documentV2 struct {
	api  string
	gv   string
	hash string
	data []byte
}

func newRemotes(o Options) *remotes { return &remotes{options: o, byName: map[string]*remote{}} }

// forEachAPI calls do for every API that an aggregated server serves. It removes other APIs from the cache.
func (rs *remotes) forEachAPI(do func(api *apiregistrationv1.APIService, r *remote)) {
	apis, err := rs.options.APIServices()
	if err != nil {
		rs.options.Logger.Warn("listing APIServices for their OpenAPI documents", "error", err)
		return
	}
	seen := map[string]bool{}
	slices.SortFunc(apis, func(a, b *apiregistrationv1.APIService) int { return strings.Compare(a.Name, b.Name) })
	for _, api := range apis {
		if api.Spec.Service == nil || !apiregistrationhelper.IsAPIServiceConditionTrue(api, apiregistrationv1.Available) {
			continue
		}
		seen[api.Name] = true
		generation := fmt.Sprintf("%s/%d", api.UID, api.Generation)
		if r := rs.byName[api.Name]; r == nil || r.generation != generation {
			rs.byName[api.Name] = &remote{generation: generation}
		}
		do(api, rs.byName[api.Name])
	}
	for name := range rs.byName {
		if !seen[name] {
			delete(rs.byName, name)
		}
	}
}

// index returns the v3 documents of all aggregated servers, with their URLs.
func (rs *remotes) index(ctx context.Context) map[string]string {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	urls := map[string]string{}
	rs.forEachAPI(func(api *apiregistrationv1.APIService, r *remote) {
		rs.refreshIndex(ctx, api, r)
		maps.Copy(urls, r.paths)
	})
	return urls
}

// owner returns the API whose server publishes a v3 document, or nil.
func (rs *remotes) owner(ctx context.Context, name string) *apiregistrationv1.APIService {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	var found *apiregistrationv1.APIService
	rs.forEachAPI(func(api *apiregistrationv1.APIService, r *remote) {
		rs.refreshIndex(ctx, api, r)
		if _, ok := r.paths[name]; ok && found == nil {
			found = api
		}
	})
	return found
}

func (rs *remotes) refreshIndex(ctx context.Context, api *apiregistrationv1.APIService, r *remote) {
	now := rs.options.Now()
	if !r.indexTime.IsZero() && now.Sub(r.indexTime) < remoteFresh {
		return
	}
	r.indexTime = now // a failure is cached, too
	status, _, data, err := rs.fetch(ctx, api, "/openapi/v3", http.Header{"Accept": {"application/json"}})
	switch {
	case err != nil:
		rs.options.Logger.Warn("fetching the OpenAPI index of an aggregated API", "api", api.Name, "error", err)
	case status == http.StatusOK:
		var index handler3.OpenAPIV3Discovery
		if err := json.Unmarshal(data, &index); err != nil {
			rs.options.Logger.Warn("reading the OpenAPI index of an aggregated API", "api", api.Name, "error", err)
			return
		}
		r.converted, r.paths = false, map[string]string{}
		for name, entry := range index.Paths {
			r.paths[name] = entry.ServerRelativeURL
		}
	case status == http.StatusNotFound:
		rs.refreshV2(ctx, api, r)
		r.converted, r.paths = true, nil
		if r.v2 != nil {
			name := groupVersionName(api)
			r.paths = map[string]string{name: documentURL(name, contentHash(r.v2))}
		}
	}
}

func groupVersionName(api *apiregistrationv1.APIService) string {
	return "apis/" + api.Spec.Group + "/" + api.Spec.Version
}

func (rs *remotes) documentsV2(ctx context.Context) []documentV2 {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	var docs []documentV2
	rs.forEachAPI(func(api *apiregistrationv1.APIService, r *remote) {
		rs.refreshV2(ctx, api, r)
		if r.v2 != nil {
			docs = append(docs, documentV2{api: api.Name, gv: groupVersionName(api), hash: contentHash(r.v2), data: r.v2})
		}
	})
	return docs
}

func (rs *remotes) refreshV2(ctx context.Context, api *apiregistrationv1.APIService, r *remote) {
	now := rs.options.Now()
	if !r.v2Time.IsZero() && now.Sub(r.v2Time) < remoteFresh {
		return
	}
	r.v2Time = now
	header := http.Header{"Accept": {"application/json"}}
	if r.v2ETag != "" {
		header.Set("If-None-Match", r.v2ETag)
	}
	status, etag, data, err := rs.fetch(ctx, api, "/openapi/v2", header)
	switch {
	case err != nil:
		rs.options.Logger.Warn("fetching the OpenAPI v2 document of an aggregated API", "api", api.Name, "error", err)
	case status == http.StatusOK:
		r.v2, r.v2ETag = data, etag
	case status == http.StatusNotFound:
		r.v2, r.v2ETag = nil, ""
	}
}

func (rs *remotes) fetch(ctx context.Context, api *apiregistrationv1.APIService, path string,
	header http.Header) (int, string, []byte, error) {
	// Another client may need the response even when this one has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), remoteTimeout)
	defer cancel()
	resp, err := rs.options.Fetch(ctx, api, path, header)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, remoteLimit+1))
	if err != nil {
		return 0, "", nil, err
	}
	if len(data) > remoteLimit {
		return 0, "", nil, fmt.Errorf("%s is larger than %d bytes", path, remoteLimit)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNotFound, http.StatusNotModified:
		return resp.StatusCode, resp.Header.Get("Etag"), data, nil
	}
	return 0, "", nil, fmt.Errorf("%s: server answered %s", path, resp.Status)
}

// proxy passes a request for a v3 document to the server that has it.
func (rs *remotes) proxy(w http.ResponseWriter, r *http.Request, api *apiregistrationv1.APIService, name string) error {
	if data, ok := rs.convertible(api.Name); ok {
		return serveConverted(w, r, data)
	}
	path := "/openapi/v3/" + name
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	header := http.Header{}
	for _, key := range []string{"Accept", "If-None-Match"} {
		if v := r.Header.Values(key); len(v) > 0 {
			header[key] = v
		}
	}
	resp, err := rs.options.Fetch(r.Context(), api, path, header)
	if err != nil {
		http.Error(w, fmt.Sprintf("the server behind APIService %s does not answer: %v", api.Name, err), http.StatusServiceUnavailable)
		return nil
	}
	defer resp.Body.Close()
	for _, key := range []string{"Content-Type", "Etag", "Cache-Control", "Expires", "Vary", "Location"} {
		if v := resp.Header.Values(key); len(v) > 0 {
			w.Header()[key] = v
		}
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // an error shows in the client's short body
	return nil
}

// convertible returns the v2 document of a server that has no v3 documents.
func (rs *remotes) convertible(api string) ([]byte, bool) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r := rs.byName[api]
	if r == nil || !r.converted || r.v2 == nil {
		return nil, false
	}
	return r.v2, true
}

// serveConverted serves a v3 document made from a v2 one, which loses some details.
func serveConverted(w http.ResponseWriter, r *http.Request, v2 []byte) error {
	m, contentType, ok := negotiate(r.Header.Get("Accept"), "v3")
	if !ok {
		w.WriteHeader(http.StatusNotAcceptable)
		return nil
	}
	return serve(w, r, responseHead{contentType: contentType, etag: contentHash(v2)}, func() ([]byte, error) {
		var s spec.Swagger
		if err := json.Unmarshal(v2, &s); err != nil {
			return nil, fmt.Errorf("reading an aggregated server's v2 document: %w", err)
		}
		data, err := json.Marshal(openapiconv.ConvertV2ToV3(&s))
		if err != nil || m == mediaJSON {
			return data, err
		}
		return handler3.ToV3ProtoBinary(data)
	})
}

// spec parses the document and keeps the paths of its group version. It renames definitions that have the names of
// built-in ones, as they may differ from these.
func (d documentV2) spec(builtIn map[string]bool) (*spec.Swagger, error) {
	var s spec.Swagger
	if err := json.Unmarshal(d.data, &s); err != nil {
		return nil, err
	}
	own := aggregator.FilterSpecByPathsWithoutSideEffects(&s, []string{"/" + d.gv + "/"})
	taken := &spec.Swagger{SwaggerProps: spec.SwaggerProps{
		Paths: &spec.Paths{Paths: map[string]spec.PathItem{}}, Definitions: spec.Definitions{}, Parameters: map[string]spec.Parameter{},
	}}
	for name := range own.Definitions {
		if builtIn[name] {
			taken.Definitions[name] = spec.Schema{SchemaProps: spec.SchemaProps{ID: "built in: " + name}}
		}
	}
	for name := range own.Parameters {
		if builtIn[name] {
			taken.Parameters[name] = spec.Parameter{ParamProps: spec.ParamProps{Name: "built in: " + name}}
		}
	}
	if err := aggregator.MergeSpecsIgnorePathConflictRenamingDefinitionsAndParameters(taken, own); err != nil {
		return nil, err
	}
	return taken, nil // the stand-ins have built-in names, which addSpec leaves out
}
