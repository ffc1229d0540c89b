// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	kyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/restmapper"
)

// maxDocuments limits the objects of one apply.
const maxDocuments = 1000

type applyRequest struct {
	YAML      string `json:"yaml"`
	Namespace string `json:"namespace"` // for objects without a namespace
	DryRun    bool   `json:"dryRun"`
}

// applied is the result for one object.
type applied struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	Action     string `json:"action,omitempty"`  // created, configured or unchanged
	Message    string `json:"message,omitempty"` // why it failed
}

// apply creates or changes the objects in a text, one after the other, by the API's server-side apply. It stops at the
// first failure, and returns the results up to it.
func (h *Handler) apply(w http.ResponseWriter, r *http.Request, u *user) {
	var in applyRequest
	if !decode(w, r, &in) {
		return
	}
	if h.o.ReadOnly && !in.DryRun {
		refuse(w, http.StatusForbidden, readOnly)
		return
	}
	objects, err := objectsOf(in.YAML)
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	a := applier{user: u, namespace: in.Namespace, dryRun: in.DryRun}
	results := []applied{}
	for _, o := range objects {
		one := a.apply(r.Context(), o)
		if results = append(results, one); one.Message != "" {
			break
		}
	}
	respond(w, map[string]any{"results": results})
}

// objectsOf reads a text of several documents. A List is replaced by its items.
func objectsOf(text string) ([]anyObject, error) {
	documents := kyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader([]byte(text))))
	var out []anyObject
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("this is not YAML: %w", err)
		}
		if isEmpty(document) {
			continue
		}
		if len(out) >= maxDocuments {
			return nil, fmt.Errorf("there are more than %d objects in it", maxDocuments)
		}
		o, err := objectOf(string(document))
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", len(out)+1, err)
		}
		items, isList := o["items"].([]any)
		if !isList {
			out = append(out, o)
			continue
		}
		for _, item := range items {
			if o, isObject := item.(map[string]any); isObject {
				out = append(out, o)
			}
		}
	}
	switch {
	case len(out) == 0:
		return nil, errors.New("there is no object in it")
	case len(out) > maxDocuments:
		return nil, fmt.Errorf("there are %d objects in it; %d at most go at once", len(out), maxDocuments)
	}
	return out, nil
}

// isEmpty reports whether a document has nothing but comments.
func isEmpty(document []byte) bool {
	for line := range bytes.Lines(document) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

// applier applies objects as one user.
type applier struct {
	user      *user
	namespace string
	dryRun    bool

	mapper meta.RESTMapper // for the API's kinds; made when first needed, and once more after a kind was not found
}

func (a *applier) apply(ctx context.Context, o anyObject) applied {
	var out applied
	out.APIVersion, _ = o["apiVersion"].(string)
	out.Kind, _ = o["kind"].(string)
	out.Namespace, _ = o.metadata()["namespace"].(string)
	out.Name, _ = o.metadata()["name"].(string)
	if err := a.write(ctx, o, &out); err != nil {
		_, _, out.Message = explain(err)
	}
	return out
}

func (a *applier) write(ctx context.Context, o anyObject, out *applied) error {
	generated, _ := o.metadata()["generateName"].(string)
	if out.APIVersion == "" || out.Kind == "" || out.Name == "" && generated == "" {
		return errors.New("an object needs apiVersion, kind and metadata.name")
	}
	mapping, err := a.mappingOf(schema.FromAPIVersionAndKind(out.APIVersion, out.Kind))
	if err != nil {
		return err
	}
	path := "/apis/" + mapping.Resource.Group + "/" + mapping.Resource.Version
	if mapping.Resource.Group == "" {
		path = "/api/" + mapping.Resource.Version
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		if out.Namespace == "" {
			out.Namespace = a.namespace
			o.metadata()["namespace"] = a.namespace
		}
		path += "/namespaces/" + out.Namespace
	}
	path += "/" + mapping.Resource.Resource
	body, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("writing the object: %w", err)
	}
	query := url.Values{"fieldManager": {fieldManager}, "fieldValidation": {"Strict"}}
	if a.dryRun {
		query.Set("dryRun", "All")
	}
	var before, after anyObject
	if out.Name == "" {
		err := a.user.write(ctx, http.MethodPost, path, query, "application/json", body, &after)
		out.Name, _ = after.metadata()["name"].(string)
		out.Action = "created"
		return err
	}
	path += "/" + out.Name
	if err := a.user.get(ctx, path, nil, &before); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err := a.user.write(ctx, http.MethodPatch, path, query, string(types.ApplyYAMLPatchType), body, &after); err != nil {
		return err
	}
	switch {
	case before == nil:
		out.Action = "created"
	case before.resourceVersion() == after.resourceVersion():
		out.Action = "unchanged"
	default:
		out.Action = "configured"
	}
	return nil
}

// mappingOf finds a kind's resource. A kind that an earlier document of the same text defines is found once the API
// serves it.
func (a *applier) mappingOf(kind schema.GroupVersionKind) (*meta.RESTMapping, error) {
	for fresh := a.mapper == nil; ; fresh = true {
		if fresh {
			client, err := discovery.NewDiscoveryClientForConfig(a.user.config)
			if err != nil {
				return nil, fmt.Errorf("using the credentials: %w", err)
			}
			groups, err := restmapper.GetAPIGroupResources(client)
			if err != nil {
				return nil, fmt.Errorf("reading the API's kinds: %w", err)
			}
			a.mapper = restmapper.NewDiscoveryRESTMapper(groups)
		}
		mapping, err := a.mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err == nil {
			return mapping, nil
		}
		if fresh {
			return nil, fmt.Errorf("the cluster has no kind %s of %s", kind.Kind, kind.GroupVersion())
		}
	}
}
