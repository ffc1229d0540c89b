// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/restmapper"
)

const (
	// applyTimeout limits how long one text waits in all for what its objects make others wait for.
	applyTimeout = 30 * time.Second
	// applyPoll is the time between two tries of an object that waits for another one.
	applyPoll = 250 * time.Millisecond
	// maxAPIMessage limits the API's own words for one object, in bytes.
	maxAPIMessage = 4096
)

type applyRequest struct {
	YAML      string `json:"yaml"`
	Namespace string `json:"namespace"` // for objects without a namespace
	DryRun    bool   `json:"dryRun"`
}

type applyResult struct {
	Document   int       `json:"document"` // counts from 1
	Line       int       `json:"line"`     // of the text, at which the object begins
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Namespace  string    `json:"namespace,omitempty"`
	Name       string    `json:"name"`
	Action     string    `json:"action,omitempty"`   // created, configured or unchanged
	Needs      string    `json:"needs,omitempty"`    // the object of the text without which the API cannot check this one
	Problems   []problem `json:"problems,omitempty"` // why it failed
	APIMessage string    `json:"said,omitempty"`     // the API's own words for the problems
}

// apply creates or changes the objects in a text by the API's server-side apply. It goes on after a failure, and
// returns the result of each object.
func (h *Handler) apply(r *http.Request, u *user) (any, error) {
	var in applyRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if h.o.ReadOnly && !in.DryRun {
		return nil, newRequestError(http.StatusForbidden, readOnly)
	}
	sources, err := sourcesOf(in.YAML)
	if err != nil {
		return nil, newRequestError(http.StatusUnprocessableEntity, "%s", err)
	}
	a := applier{user: u, namespace: in.Namespace, dryRun: in.DryRun, waitLimit: h.o.applyTimeout, sources: sources}
	return map[string]any{"results": a.applyAll(r.Context())}, nil
}

// definitionKinds are the kinds without which the API refuses objects that name one. They go before the other objects
// of a text.
var definitionKinds = []schema.GroupKind{
	{Kind: "Namespace"}, {Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"},
	{Group: "scheduling.k8s.io", Kind: "PriorityClass"}, {Group: "node.k8s.io", Kind: "RuntimeClass"}, {Kind: "ServiceAccount"},
}

// rank returns an object's place among the first kinds, or their number.
func (s *source) rank() int {
	if i := slices.Index(definitionKinds, kindOf(s.object).GroupKind()); i >= 0 {
		return i
	}
	return len(definitionKinds)
}

func kindOf(o anyObject) schema.GroupVersionKind {
	apiVersion, _ := o["apiVersion"].(string)
	kind, _ := o["kind"].(string)
	return schema.FromAPIVersionAndKind(apiVersion, kind)
}

// applier applies the objects of a text as one user.
type applier struct {
	user      *user
	namespace string
	dryRun    bool
	waitLimit time.Duration // for all waits together
	sources   []source

	results      []applyResult // as the sources
	firstSources []int         // the indices of sources of the first kinds
	waitDeadline time.Time     // zero before the first wait
	aborted      bool          // the API does not answer, or the user may not ask it any more

	groups []*restmapper.APIGroupResources
	mapper meta.RESTMapper // for the API's kinds; made when first needed
	stale  bool            // a kind may have come since
}

func (a *applier) applyAll(ctx context.Context) []applyResult {
	a.results = make([]applyResult, len(a.sources))
	order := make([]int, len(a.sources))
	for i := range a.sources {
		order[i] = i
		if a.sources[i].rank() < len(definitionKinds) {
			a.firstSources = append(a.firstSources, i)
		}
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(a.sources[i].rank(), a.sources[j].rank()) })
	for _, i := range order {
		a.applyOne(ctx, &a.sources[i], &a.results[i])
	}
	return a.results
}

// applyOne applies an object. If that waits for another object of the text, a dry run says so, and else it is tried
// again until waitDeadline.
func (a *applier) applyOne(ctx context.Context, s *source, out *applyResult) {
	*out = applyResult{Document: s.number, Line: s.lineOf(""), Problems: s.problems}
	if s.problems != nil {
		return
	}
	out.APIVersion, _ = s.object["apiVersion"].(string)
	out.Kind, _ = s.object["kind"].(string)
	out.Namespace, _ = s.object.metadata()["namespace"].(string)
	out.Name, _ = s.object.metadata()["name"].(string)
	if a.aborted {
		out.Problems = []problem{{out.Line, "this was not tried, since the cluster did not answer before"}}
		return
	}
	for {
		err := a.write(ctx, s.object, out)
		if err == nil {
			if s.rank() == 1 && out.Action != "unchanged" {
				a.stale = true
			}
			return
		}
		out.Action = ""
		by, what := a.missingDependency(s, out, err)
		switch {
		case by < 0:
		case a.dryRun:
			out.Needs = fmt.Sprintf("document %d %s", a.sources[by].number, what)
			out.Problems, out.APIMessage = s.explain(decodeStrictly(s.object))
			return
		case a.results[by].Problems != nil:
			out.Needs = fmt.Sprintf("document %d %s, and has failed", a.sources[by].number, what)
		case a.wait(ctx, by):
			continue
		}
		var unreachable *url.Error
		a.aborted = errors.As(err, &unreachable) || apierrors.IsUnauthorized(err) || ctx.Err() != nil
		out.Problems, out.APIMessage = s.explain(err)
		return
	}
}

// explain returns an error's sentences with their lines, and the API's own words for them when these are others.
func (s *source) explain(err error) (problems []problem, said string) {
	if err == nil {
		return nil, ""
	}
	for _, x := range messagesOf(err) {
		// Go's decoder does not name the key of a map whose value has the wrong type.
		if key, line := s.notText(x.field); key != "" && strings.HasPrefix(x.text, x.field+": text is wanted") {
			problems = append(problems, problem{line, fmt.Sprintf("%s.%s: %s", x.field, key, expectedTypes["string"])})
			continue
		}
		problems = append(problems, problem{s.lineOf(x.field), x.text})
	}
	_, _, said = explainError(err)
	if len(problems) == 1 && problems[0].Text == said {
		return problems, ""
	}
	return problems, strings.ToValidUTF8(said[:min(len(said), maxAPIMessage)], "")
}

// missingDependency returns the index of the object of the text for which an object waits that is refused with err, and
// what that object is for it. The index is -1 when there is none.
func (a *applier) missingDependency(s *source, out *applyResult, err error) (by int, what string) {
	message := err.Error()
	var noKind *noKindError
	unknown := errors.As(err, &noKind)
	for _, i := range a.firstSources {
		m := &a.sources[i]
		name, _ := m.object.metadata()["name"].(string)
		namespace, _ := m.object.metadata()["namespace"].(string)
		here := cmp.Or(namespace, a.namespace) == out.Namespace
		isPod := out.Kind == "Pod" && out.APIVersion == "v1"
		switch {
		case m.document == s.document && m.item == s.item:
		case m.rank() == 0 && name == out.Namespace && strings.Contains(message, fmt.Sprintf("namespaces %q not found", name)):
			return i, "makes its namespace"
		case m.rank() == 0 && name == out.Namespace && isPod && strings.Contains(message, `serviceaccount "default" not found`):
			return i, "makes its namespace"
		case m.rank() == 1 && definesKind(m.object, kindOf(s.object)) && (unknown || apierrors.IsNotFound(err)):
			return i, "makes its kind"
		case m.rank() == 1 && definesKind(m.object, kindOf(s.object)) && a.dryRun && a.results[i].Action == "configured":
			return i, "changes its kind"
		case m.rank() == 2 && isPod && strings.Contains(message, fmt.Sprintf("no PriorityClass with name %s was found", name)):
			return i, "makes its priority class"
		case m.rank() == 3 && isPod && strings.Contains(message, fmt.Sprintf("RuntimeClass %q not found", name)):
			return i, "makes its runtime class"
		case m.rank() == 4 && isPod && here && strings.Contains(message, fmt.Sprintf("serviceaccount %q not found", name)):
			return i, "makes its service account"
		}
	}
	return -1, ""
}

func definesKind(definition anyObject, kind schema.GroupVersionKind) bool {
	spec, _ := definition["spec"].(map[string]any)
	names, _ := spec["names"].(map[string]any)
	versions, _ := spec["versions"].([]any)
	return spec["group"] == kind.Group && names["kind"] == kind.Kind && slices.ContainsFunc(versions, func(v any) bool {
		version, _ := v.(map[string]any)
		return version["name"] == kind.Version
	})
}

// wait waits before an object that needs another one is tried again. It returns false when the time is over, or
// when the API refuses the other one's names.
func (a *applier) wait(ctx context.Context, by int) bool {
	if a.waitDeadline.IsZero() {
		a.waitDeadline = time.Now().Add(a.waitLimit)
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(applyPoll):
		}
		if time.Now().After(a.waitDeadline) {
			return false
		}
		if a.sources[by].rank() != 1 {
			return true
		}
		// The kinds of the API are much to read: only once the definition says that its kind is served.
		a.stale = true
		name, _ := a.sources[by].object.metadata()["name"].(string)
		var definition struct {
			Status struct {
				Conditions []struct{ Type, Status string }
			}
		}
		if err := a.user.get(ctx, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"+name, nil, &definition); err != nil {
			return true
		}
		for _, c := range definition.Status.Conditions {
			if c.Type == "Established" && c.Status == "True" {
				return true
			}
			if c.Type == "NamesAccepted" && c.Status == "False" {
				return false
			}
		}
	}
}

func (a *applier) write(ctx context.Context, o anyObject, out *applyResult) error {
	generated, _ := o.metadata()["generateName"].(string)
	switch {
	case out.APIVersion == "" || out.Kind == "" || out.Name == "" && generated == "":
		return errors.New("an object needs apiVersion, kind and metadata.name")
	case len(content.IsPathSegmentName(out.Name)) > 0 || len(content.IsPathSegmentName(out.Namespace)) > 0:
		return errors.New("a name and a namespace have no / and no %, and are not . or ..")
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
		if err == nil {
			out.Name, _ = after.metadata()["name"].(string)
			out.Action = "created"
		}
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

// noKindError says that the API does not serve a kind.
type noKindError struct {
	kind          schema.GroupVersionKind
	otherVersions []string // the versions that have a kind of this name
}

func (e *noKindError) Error() string {
	text := fmt.Sprintf("the cluster has no kind %s of %s", e.kind.Kind, e.kind.GroupVersion())
	if len(e.otherVersions) > 0 {
		text += ", and has it of " + strings.Join(e.otherVersions, ", ")
	}
	return text
}

// mappingOf finds a kind's resource. It reads the API's kinds once, and again when an object of the text may have made
// one.
func (a *applier) mappingOf(kind schema.GroupVersionKind) (*meta.RESTMapping, error) {
	if a.mapper != nil {
		if mapping, err := a.mapper.RESTMapping(kind.GroupKind(), kind.Version); err == nil {
			return mapping, nil
		}
	}
	if a.mapper == nil || a.stale {
		client, err := discovery.NewDiscoveryClientForConfig(a.user.config)
		if err != nil {
			return nil, fmt.Errorf("using the credentials: %w", err)
		}
		if a.groups, err = restmapper.GetAPIGroupResources(client); err != nil {
			return nil, fmt.Errorf("reading the API's kinds: %w", err)
		}
		a.mapper, a.stale = restmapper.NewDiscoveryRESTMapper(a.groups), false
		if mapping, err := a.mapper.RESTMapping(kind.GroupKind(), kind.Version); err == nil {
			return mapping, nil
		}
	}
	missing := &noKindError{kind: kind}
	for _, g := range a.groups {
		for version, resources := range g.VersionedResources {
			for _, r := range resources {
				if r.Kind == kind.Kind && !strings.Contains(r.Name, "/") {
					other := schema.GroupVersion{Group: g.Group.Name, Version: version}
					missing.otherVersions = append(missing.otherVersions, other.String())
				}
			}
		}
	}
	slices.Sort(missing.otherVersions)
	return nil, missing
}
