// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/pmezard/go-difflib/difflib"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
)

// fieldManager is the name under which the API keeps what the console wrote.
const fieldManager = "coracle-console"

// editTries bounds how often an edit begins again because somebody else wrote the object in the same moment.
const editTries = 5

// errConflict says that the user and somebody else changed the same field.
var errConflict = errors.New("somebody else has changed the same fields since: nothing was written")

type editRequest struct {
	Path   string `json:"path"`
	Base   string `json:"base"` // the object as the user got it
	Text   string `json:"text"` // and as he wants it
	DryRun bool   `json:"dryRun"`
}

type editAnswer struct {
	YAML  string `json:"yaml"`
	Diff  string `json:"diff"` // from the object as it is to the result
	Patch string `json:"patch"`
}

// edit writes what the user changed between two texts, and only that: what others changed meanwhile stays. When both
// changed the same field, nothing is written, and the answer has the object as it is now.
func (h *Handler) edit(w http.ResponseWriter, r *http.Request, u *user) {
	var in editRequest
	if !decode(w, r, &in) {
		return
	}
	if h.o.ReadOnly && !in.DryRun {
		refuse(w, http.StatusForbidden, "this console only shows: it was started with --read-only")
		return
	}
	base, err := objectOf(in.Base)
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	text, err := objectOf(in.Text)
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	patch, err := newPatch(base, text)
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	var live, result anyObject
	for range editTries {
		live, result, err = u.applyPatch(r.Context(), in.Path, base, patch, in.DryRun)
		if !apierrors.IsConflict(err) {
			break
		}
	}
	if errors.Is(err, errConflict) || apierrors.IsConflict(err) {
		now, yamlErr := ofUser(live).yaml()
		if yamlErr != nil {
			refuseError(w, yamlErr)
			return
		}
		answerWith(w, http.StatusConflict, map[string]string{"message": err.Error(), "yaml": now})
		return
	}
	if err != nil {
		refuseError(w, err)
		return
	}
	out, err := newEditAnswer(live, result, patch)
	if err != nil {
		refuseError(w, err)
		return
	}
	answer(w, out)
}

func newEditAnswer(live, result anyObject, p *patch) (*editAnswer, error) {
	before, err := ofUser(live).yaml()
	if err != nil {
		return nil, err
	}
	after, err := ofUser(result).yaml()
	if err != nil {
		return nil, err
	}
	diff, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
		A: difflib.SplitLines(before), B: difflib.SplitLines(after), FromFile: "now", ToFile: "after", Context: 3,
	})
	if err != nil {
		return nil, fmt.Errorf("comparing: %w", err)
	}
	text, err := json.Marshal(p.changes)
	if err != nil {
		return nil, fmt.Errorf("writing the patch: %w", err)
	}
	return &editAnswer{YAML: after, Diff: diff, Patch: string(text)}, nil
}

// patch is what a user changed of an object. Kinds of Kubernetes' own are patched strategically (lists are merged by
// their keys), others by RFC 7386.
type patch struct {
	changes map[string]any
	schema  strategicpatch.LookupPatchMeta // nil for RFC 7386
}

// identity are the fields that say which object it is.
var identity = []mergepatch.PreconditionFunc{
	mergepatch.RequireKeyUnchanged("apiVersion"), mergepatch.RequireKeyUnchanged("kind"),
	mergepatch.RequireMetadataKeyUnchanged("name"), mergepatch.RequireMetadataKeyUnchanged("namespace"),
}

// newPatch compares two versions of an object.
func newPatch(from, to anyObject) (*patch, error) {
	p := &patch{}
	apiVersion, _ := from["apiVersion"].(string)
	kind, _ := from["kind"].(string)
	if typed, err := scheme.Scheme.New(schema.FromAPIVersionAndKind(apiVersion, kind)); err == nil {
		meta, err := strategicpatch.NewPatchMetaFromStruct(typed)
		if err != nil {
			return nil, fmt.Errorf("how a %s is patched: %w", kind, err)
		}
		p.schema = meta
	}
	changes, err := p.between(from, to)
	if mergepatch.IsPreconditionFailed(err) {
		return nil, errors.New("apiVersion, kind, name and namespace of an object cannot be changed: create another one")
	}
	p.changes = changes
	return p, err
}

func (p *patch) between(from, to anyObject) (map[string]any, error) {
	if p.schema != nil {
		changes, err := strategicpatch.CreateTwoWayMergeMapPatchUsingLookupPatchMeta(strategicpatch.JSONMap(from), strategicpatch.JSONMap(to), p.schema, identity...)
		if err != nil {
			return nil, fmt.Errorf("finding what was changed: %w", err)
		}
		return changes, nil
	}
	changes := mergePatch(from, to)
	for _, unchanged := range identity {
		if !unchanged(changes) {
			return nil, mergepatch.NewErrPreconditionFailed(changes)
		}
	}
	return changes, nil
}

// mergePatch is the patch of RFC 7386 that leads from one object to the other.
func mergePatch(from, to map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range to {
		old, had := from[k]
		a, aMap := old.(map[string]any)
		b, bMap := v.(map[string]any)
		switch {
		case had && aMap && bMap:
			if inner := mergePatch(a, b); len(inner) > 0 {
				out[k] = inner
			}
		case !had || !equal(old, v):
			out[k] = v
		}
	}
	for k := range from {
		if _, has := to[k]; !has {
			out[k] = nil
		}
	}
	return out
}

func equal(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// conflicts says whether two patches change the same field to different values.
func (p *patch) conflicts(theirs map[string]any) (bool, error) {
	if p.schema == nil {
		return overlap(p.changes, theirs), nil
	}
	both, err := strategicpatch.MergingMapsHaveConflicts(p.changes, theirs, p.schema)
	if err != nil {
		return true, fmt.Errorf("comparing the changes: %w", err)
	}
	return both, nil
}

// overlap says whether two patches of RFC 7386 give a field different values. Lists are one value there.
func overlap(a, b map[string]any) bool {
	for k, x := range a {
		y, both := b[k]
		if !both {
			continue
		}
		xMap, xOK := x.(map[string]any)
		yMap, yOK := y.(map[string]any)
		switch {
		case xOK && yOK:
			if overlap(xMap, yMap) {
				return true
			}
		case !equal(x, y):
			return true
		}
	}
	return false
}

// applyPatch writes the changes to the object as it is now. It returns that object, and what became of it.
func (u *user) applyPatch(ctx context.Context, path string, base anyObject, p *patch, dryRun bool) (live, result anyObject, err error) {
	if err := u.get(ctx, path, nil, &live); err != nil {
		return nil, nil, err
	}
	theirs, err := p.between(ofUser(base), ofUser(live))
	if err != nil {
		return live, nil, err
	}
	if both, err := p.conflicts(theirs); err != nil || both {
		return live, nil, errors.Join(err, errConflict)
	}
	changes := map[string]any{}
	for k, v := range p.changes {
		changes[k] = v
	}
	// Whoever writes between the reading and the patch is seen: the API refuses the patch.
	metadata := map[string]any{}
	if given, ok := changes["metadata"].(map[string]any); ok {
		for k, v := range given {
			metadata[k] = v
		}
	}
	metadata["resourceVersion"] = live.resourceVersion()
	changes["metadata"] = metadata
	body, err := json.Marshal(changes)
	if err != nil {
		return live, nil, fmt.Errorf("writing the patch: %w", err)
	}
	query := url.Values{"fieldManager": {fieldManager}, "fieldValidation": {"Strict"}}
	if dryRun {
		query.Set("dryRun", "All")
	}
	kind := types.MergePatchType
	if p.schema != nil {
		kind = types.StrategicMergePatchType
	}
	err = u.send(ctx, http.MethodPatch, path, query, string(kind), body, &result)
	return live, result, err
}

// ofUser is an object without what the API itself writes: it is not edited, and never conflicts with a user's change.
func ofUser(o anyObject) anyObject {
	out := anyObject{}
	for k, v := range o {
		if k != "status" && k != "metadata" {
			out[k] = v
		}
	}
	metadata := map[string]any{}
	for k, v := range o.metadata() {
		if k != "resourceVersion" && k != "managedFields" && k != "generation" {
			metadata[k] = v
		}
	}
	out["metadata"] = metadata
	return out
}
