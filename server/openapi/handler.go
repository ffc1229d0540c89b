// SPDX-License-Identifier: Apache-2.0

// Package openapi serves /openapi/v2 and /openapi/v3.
//
// The documents of the built-in APIs are upstream's own. They are embedded compressed (documents.bin, made by go
// generate) and decompressed per request. The documents of custom resources are built from the
// CustomResourceDefinitions on request. The documents of aggregated API servers are fetched from these. Nothing is
// built in advance or stored: upstream stores every definition of every API as a tree, for the life of the process.
// That costs a third of an API server's memory for a few requests a day. Hashes are known without building. So
// conditional requests are cheap, and so is the index, which one of upstream's components polls.
//
// The package never registers itself with a mux and holds no informers.
package openapi

import (
	"cmp"
	"context"
	_ "embed" // for documents
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-openapi/pkg/handler3"

	"github.com/coracle-k8s/coracle/server/openapi/artifact"
)

//go:generate go run ./gen -o documents.bin

//go:embed documents.bin
var documentsFile string

// Options are the parameters of New.
type Options struct {
	// ServedPaths are the paths that the API server itself serves, such as /apis/apps/v1. Documents of other group
	// versions are not published.
	ServedPaths []string
	// CRDs lists the CustomResourceDefinitions. The handler does not change them.
	CRDs func() ([]*apiextensionsv1.CustomResourceDefinition, error)
	// APIServices lists the registered APIs, including local ones.
	APIServices func() ([]*apiregistrationv1.APIService, error)
	// Fetch requests a path from the server behind an APIService.
	Fetch func(ctx context.Context, api *apiregistrationv1.APIService, path string, header http.Header) (*http.Response, error)
	// Now is the clock. When nil it is time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Handler serves the OpenAPI endpoints.
type Handler struct {
	options   Options
	file      *artifact.File
	published map[string]bool // group versions and groups
	remotes   *remotes

	// building admits one request at a time to operations that need much memory: decompressing, building from CRDs, and
	// converting to protobuf.
	building sync.Mutex
}

// New reads the index of the embedded documents.
func New(o Options) (*Handler, error) {
	if o.CRDs == nil || o.APIServices == nil || o.Fetch == nil {
		return nil, errors.New("openapi.Options: CRDs, APIServices and Fetch are required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	file, err := artifact.Open(documentsFile)
	if err != nil {
		return nil, err
	}
	h := &Handler{options: o, file: file, published: map[string]bool{}, remotes: newRemotes(o)}
	for _, path := range o.ServedPaths {
		if owner := artifact.Owner(path); owner != "" {
			h.published[owner] = true
			if group, _, ok := strings.Cut(owner, "/"); ok {
				h.published[group] = true
			}
		} else {
			h.published[strings.Trim(path, "/")] = true
		}
	}
	return h, nil
}

// publishes says whether the built-in document of that name belongs to a served API.
func (h *Handler) publishes(name string) bool {
	if owner := artifact.Owner(name); owner != "" {
		return h.published[owner]
	}
	return h.published[name]
}

// ServeHTTP implements http.Handler for /openapi/v2, /openapi/v3 and the paths below the latter.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET is served here", http.StatusMethodNotAllowed)
		return
	}
	var err error
	switch path := strings.TrimSuffix(r.URL.Path, "/"); {
	case path == "/openapi/v2":
		err = h.serveV2(w, r)
	case path == "/openapi/v3":
		err = h.serveIndex(w, r)
	case strings.HasPrefix(path, "/openapi/v3/"):
		err = h.serveV3(w, r, strings.TrimPrefix(path, "/openapi/v3/"))
	default:
		http.NotFound(w, r)
	}
	if err != nil {
		h.options.Logger.Error("serving an OpenAPI document", "path", r.URL.Path, "error", err)
		http.Error(w, "the OpenAPI document could not be made: "+err.Error(), http.StatusInternalServerError)
	}
}

// serveIndex lists the v3 documents, each with a hash of its content in its URL.
func (h *Handler) serveIndex(w http.ResponseWriter, r *http.Request) error {
	paths := map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}
	add := func(name, url string) {
		if _, taken := paths[name]; !taken {
			paths[name] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: url}
		}
	}
	for name, doc := range h.file.Index.Documents {
		if h.publishes(name) {
			add(name, documentURL(name, doc.Hash))
		}
	}
	crds, err := h.crdGroups()
	if err != nil {
		return err
	}
	for name, group := range crds {
		add(name, documentURL(name, group.hash()))
	}
	for name, url := range h.remotes.index(r.Context()) {
		add(name, url)
	}
	body, err := json.Marshal(handler3.OpenAPIV3Discovery{Paths: paths})
	if err != nil {
		return fmt.Errorf("encoding the index: %w", err)
	}
	return serve(w, r, responseHead{contentType: "application/json", etag: contentHash(body)}, func() ([]byte, error) { return body, nil })
}

// serveV3 serves one document: of a built-in API, of custom resources, or of an aggregated server.
func (h *Handler) serveV3(w http.ResponseWriter, r *http.Request, name string) error {
	if doc, ok := h.file.Index.Documents[name]; ok && h.publishes(name) {
		return h.serveDocument(w, r, name, doc.Hash, func(m media) ([]byte, error) {
			if m == mediaProtobuf {
				return h.file.Read(doc.Protobuf)
			}
			return h.file.Read(doc.JSON)
		})
	}
	crds, err := h.crdGroups()
	if err != nil {
		return err
	}
	if group, ok := crds[name]; ok {
		return h.serveDocument(w, r, name, group.hash(), group.documentV3)
	}
	if api := h.remotes.owner(r.Context(), name); api != nil {
		return h.remotes.proxy(w, r, api, name)
	}
	http.NotFound(w, r)
	return nil
}

// serveDocument negotiates the format and checks the hash of a v3 document.
func (h *Handler) serveDocument(w http.ResponseWriter, r *http.Request, name, hash string, build func(media) ([]byte, error)) error {
	w.Header().Add("Vary", "Accept")
	m, contentType, ok := negotiate(r.Header.Get("Accept"), "v3")
	if !ok {
		w.WriteHeader(http.StatusNotAcceptable)
		return nil
	}
	a := responseHead{contentType: contentType, etag: hash}
	if asked := r.URL.Query().Get("hash"); asked != "" {
		if asked != hash {
			http.Redirect(w, r, documentURL(name, hash), http.StatusMovedPermanently)
			return nil
		}
		a.immutable = h.options.Now()
	}
	return serve(w, r, a, func() ([]byte, error) {
		h.building.Lock()
		defer h.building.Unlock()
		return build(m)
	})
}
