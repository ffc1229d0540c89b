// SPDX-License-Identifier: Apache-2.0

package openapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/coracle-k8s/coracle/server/openapi/artifact"
)

// serveV2 serves the single v2 document of all APIs.
func (h *Handler) serveV2(w http.ResponseWriter, r *http.Request) error {
	w.Header().Add("Vary", "Accept")
	m, contentType, ok := negotiate(r.Header.Get("Accept"), "v2")
	if !ok {
		w.WriteHeader(http.StatusNotAcceptable)
		return nil
	}
	crds, err := h.crdGroups()
	if err != nil {
		return err
	}
	remote := h.remotes.documentsV2(r.Context())
	hashes := []byte(h.file.Index.V2.Hash)
	for _, name := range slices.Sorted(maps.Keys(crds)) {
		hashes = append(hashes, crds[name].hash()...)
	}
	for _, doc := range remote {
		hashes = append(hashes, doc.hash...)
	}
	return serve(w, r, responseHead{contentType: contentType, etag: contentHash(hashes)}, func() ([]byte, error) {
		h.building.Lock()
		defer h.building.Unlock()
		added, err := h.additions(crds, remote)
		if err != nil {
			return nil, err
		}
		if m == mediaProtobuf {
			return h.protobufV2(added)
		}
		return h.jsonV2(added)
	})
}

// additions returns the sections of the v2 document besides the built-in APIs. It leaves out definitions and parameters
// that those have too: the builder of CRDs takes them from the same types.
func (h *Handler) additions(crds map[string]*crdGroup, remote []documentV2) (*spec.Swagger, error) {
	if len(crds) == 0 && len(remote) == 0 {
		return nil, nil
	}
	data, err := h.file.Read(h.file.Index.V2.Names)
	if err != nil {
		return nil, err
	}
	builtIn := map[string]bool{}
	for name := range strings.Lines(string(data)) {
		builtIn[strings.TrimSuffix(name, "\n")] = true
	}
	added := &spec.Swagger{SwaggerProps: spec.SwaggerProps{
		Swagger: "2.0", Info: &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: h.file.Index.Kubernetes}},
		Paths:       &spec.Paths{Paths: map[string]spec.PathItem{}},
		Definitions: spec.Definitions{}, Parameters: map[string]spec.Parameter{},
	}}
	for _, name := range slices.Sorted(maps.Keys(crds)) {
		specs, err := crds[name].specsV2()
		if err != nil {
			return nil, err
		}
		for _, s := range specs {
			addSpec(added, s, builtIn)
		}
	}
	for _, doc := range remote {
		if h.hasPathsOf(artifact.Owner(doc.gv)) {
			continue // the aggregated server replaces ours
		}
		s, err := doc.spec(builtIn)
		if err != nil {
			h.options.Logger.Warn("leaving out the OpenAPI v2 document of an aggregated API", "api", doc.api, "error", err)
			continue
		}
		addSpec(added, s, builtIn)
	}
	return added, nil
}

// hasPathsOf says whether paths of a group version are published with the built-in APIs.
func (h *Handler) hasPathsOf(owner string) bool {
	return h.published[owner] && slices.ContainsFunc(h.file.Index.V2.Paths, func(p artifact.Section) bool { return p.Name == owner })
}

func addSpec(to, s *spec.Swagger, builtIn map[string]bool) {
	for name, d := range s.Definitions {
		if !builtIn[name] {
			to.Definitions[name] = d
		}
	}
	for name, p := range s.Parameters {
		if !builtIn[name] {
			to.Parameters[name] = p
		}
	}
	if s.Paths == nil {
		return
	}
	for path, item := range s.Paths.Paths {
		if _, taken := to.Paths.Paths[path]; !taken {
			to.Paths.Paths[path] = item
		}
	}
}

// jsonV2 joins the sections of the built-in document and the additions as text.
func (h *Handler) jsonV2(added *spec.Swagger) ([]byte, error) {
	v2 := h.file.Index.V2
	text, err := h.file.Read(v2.JSON)
	if err != nil {
		return nil, err
	}
	var definitions, parameters, paths []byte
	if added != nil {
		for _, m := range []struct {
			to   *[]byte
			from any
		}{{&definitions, added.Definitions}, {&parameters, added.Parameters}, {&paths, added.Paths}} {
			data, err := json.Marshal(m.from)
			if err != nil {
				return nil, fmt.Errorf("encoding the v2 document of custom resources: %w", err)
			}
			*m.to = bytes.TrimSuffix(bytes.TrimPrefix(data, []byte("{")), []byte("}"))
		}
	}
	b := bytes.NewBuffer(make([]byte, 0, len(text)+len(definitions)+len(parameters)+len(paths)+64))
	members := func(name string, lists ...[]byte) {
		fmt.Fprintf(b, `,%q:{`, name)
		first := true
		for _, list := range lists {
			if len(list) == 0 {
				continue
			}
			if !first {
				b.WriteByte(',')
			}
			first = false
			b.Write(list)
		}
		b.WriteByte('}')
	}
	lists := [][]byte{}
	for _, p := range v2.Paths {
		if p.Name == "" || h.published[p.Name] {
			lists = append(lists, sectionOf(text, p))
		}
	}
	b.WriteByte('{')
	b.Write(sectionOf(text, v2.Header))
	members("definitions", sectionOf(text, v2.Definitions), definitions)
	members("parameters", sectionOf(text, v2.Parameters), parameters)
	members("paths", append(lists, paths)...)
	b.WriteByte('}')
	return b.Bytes(), nil
}

// protobufV2 joins serialized documents: concatenation merges messages. Of a repeated occurrence of a singular field
// the last is used, so the base document comes last.
func (h *Handler) protobufV2(added *spec.Swagger) ([]byte, error) {
	v2 := h.file.Index.V2
	var out []byte
	if added != nil {
		data, err := added.MarshalJSON()
		if err != nil {
			return nil, fmt.Errorf("encoding the v2 document of custom resources: %w", err)
		}
		if out, err = handler.ToProtoBinary(data); err != nil {
			return nil, fmt.Errorf("converting the v2 document of custom resources: %w", err)
		}
	}
	text, err := h.file.Read(v2.Protobuf)
	if err != nil {
		return nil, err
	}
	out = slices.Grow(out, len(text))
	for _, p := range v2.ProtobufPaths {
		if p.Name == "" || h.published[p.Name] {
			out = append(out, sectionOf(text, p)...)
		}
	}
	return append(out, sectionOf(text, v2.ProtobufBase)...), nil
}

func sectionOf(text []byte, p artifact.Section) []byte { return text[p.Offset : p.Offset+p.Length] }
