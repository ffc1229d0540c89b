// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// fieldManager is the field manager of the console's writes.
const fieldManager = "coracle-console"

// editTries limits how often an edit is tried when another client writes the object at the same time.
const editTries = 5

// maxDiffLines limits the lines from the first to the last that differ.
const maxDiffLines = 2000

// errOther says that the edited text is of another object than the one at the path.
var errOther = errors.New("this is another object")

// errConflict says that the user and another client changed the same field.
var errConflict = errors.New("another client has changed the same fields since: nothing was written")

type editRequest struct {
	Path   string `json:"path"`
	Base   string `json:"base"` // the object as the user received it
	Text   string `json:"text"` // the object as the user edited it
	DryRun bool   `json:"dryRun"`
}

type editResponse struct {
	YAML  string `json:"yaml"`
	Diff  string `json:"diff"` // from the current object to the result
	Patch string `json:"patch"`
	Type  string `json:"type"` // of the patch, as kubectl patch names it: strategic or merge
}

// edit writes only what the user changed between two texts: other clients' changes stay. When the user and another
// client changed the same field, it writes nothing and answers with the current object.
func (h *Handler) edit(r *http.Request, u *user) (any, error) {
	var in editRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if h.o.ReadOnly && !in.DryRun {
		return nil, newRequestError(http.StatusForbidden, readOnly)
	}
	if err := objectPath(in.Path); err != nil {
		return nil, newRequestError(http.StatusBadRequest, "%s", err)
	}
	base, err := singleObject(in.Base)
	if err == nil && base.problems != nil {
		err = errors.New(base.problems[0].Text)
	}
	if err != nil {
		return nil, newRequestError(http.StatusUnprocessableEntity, "%s", err)
	}
	text, err := singleObject(in.Text)
	if err != nil {
		return nil, newRequestError(http.StatusUnprocessableEntity, "%s", err)
	}
	if text.problems != nil {
		return nil, newTextError(http.StatusUnprocessableEntity, text.problems, "")
	}
	keepAnnotations(base.object, text.object)
	patch, err := newPatch(base.object, text.object)
	if err != nil {
		return nil, newRequestError(http.StatusUnprocessableEntity, "%s", err)
	}
	var live, result anyObject
	for range editTries {
		live, result, err = u.applyPatch(r.Context(), in.Path, patch, in.DryRun)
		if !apierrors.IsConflict(err) {
			break
		}
	}
	switch {
	case errors.Is(err, errConflict) || apierrors.IsConflict(err):
		return nil, newConflict(live, patch, err)
	case errors.Is(err, errOther):
		return nil, newRequestError(http.StatusUnprocessableEntity, "%s", err)
	case err != nil:
		code, _, message := explainError(err)
		problems, said := text.explain(err)
		// What the API says of a patch whose values have wrong types has no field.
		if better, _ := text.explain(decodeStrictly(text.object)); isOfPatch(err) && better != nil {
			problems, said = better, message
		}
		return nil, newTextError(cmp.Or(code, http.StatusBadGateway), problems, said)
	}
	return newEditResponse(live, result, patch)
}

// isOfPatch reports whether the API could not apply a patch at all.
func isOfPatch(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(status.Status().Details.Causes, func(c metav1.StatusCause) bool { return c.Field == "patch" })
}

// newTextError returns the error for what is wrong in a text, with the API's own words for it.
func newTextError(code int, problems []problem, said string) error {
	var texts []string
	for _, p := range problems {
		texts = append(texts, p.Text)
	}
	return &requestError{code, map[string]any{"message": strings.Join(texts, "; "), "problems": problems, "said": said}}
}

// newConflict returns the error that nothing was written, and why. The response has the current object, and the same
// with the user's changes, on which the user can continue.
func newConflict(live anyObject, p *patch, conflict error) error {
	now := ofUser(live)
	merged, err := p.onTopOf(now)
	if err != nil {
		return err
	}
	nowText, err := now.yaml()
	if err != nil {
		return err
	}
	mergedText, err := merged.yaml()
	if err != nil {
		return err
	}
	return &requestError{http.StatusConflict, map[string]any{"message": conflict.Error(), "yaml": nowText, "merged": mergedText}}
}

func newEditResponse(live, result anyObject, p *patch) (*editResponse, error) {
	before, err := ofUser(live).yaml()
	if err != nil {
		return nil, err
	}
	after, err := ofUser(result).yaml()
	if err != nil {
		return nil, err
	}
	diff, err := unifiedDiff(before, after)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(p.changes)
	if err != nil {
		return nil, fmt.Errorf("writing the patch: %w", err)
	}
	kind := "merge"
	if p.schema != nil {
		kind = "strategic"
	}
	return &editResponse{YAML: after, Diff: diff, Patch: string(text), Type: kind}, nil
}

// unifiedDiff returns a unified diff. It does not compare texts that differ in many lines, since the time grows with
// the square of their number.
func unifiedDiff(before, after string) (string, error) {
	a, b := difflib.SplitLines(before), difflib.SplitLines(after)
	same := 0
	for same < min(len(a), len(b)) && a[same] == b[same] {
		same++
	}
	end := 0
	for end < min(len(a), len(b))-same && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	if max(len(a), len(b))-same-end > maxDiffLines {
		return fmt.Sprintf("Lines %d to %d differ: too many to compare.\n", same+1, len(b)-end), nil
	}
	text, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{A: a, B: b, FromFile: "now", ToFile: "after", Context: 3})
	if err != nil {
		return "", fmt.Errorf("comparing: %w", err)
	}
	return text, nil
}

// applyPatch writes the changes to the current object. It returns that object and the result.
func (u *user) applyPatch(ctx context.Context, path string, p *patch, dryRun bool) (live, result anyObject, err error) {
	if err := u.get(ctx, path, nil, &live); err != nil {
		return nil, nil, err
	}
	if err := p.checkIdentity(live); err != nil {
		return live, nil, err
	}
	now := ofUser(live)
	if _, has := p.original["status"]; has {
		now["status"] = live["status"]
	}
	if field := p.userChanges.conflict(p.changesBetween(ofUserWith(p.original), now)); field != "" {
		return live, nil, fmt.Errorf("%w (%s)", errConflict, field)
	}
	changes, err := clone(p.changes)
	if err != nil {
		return live, nil, err
	}
	// If another client writes between the read and the patch, the API refuses the patch.
	metadata, _ := changes["metadata"].(map[string]any)
	if metadata == nil {
		metadata = map[string]any{}
		changes["metadata"] = metadata
	}
	metadata["resourceVersion"] = live.resourceVersion()
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
	err = u.write(ctx, http.MethodPatch, path, query, string(kind), body, &result)
	return live, result, err
}

// checkIdentity returns an error unless an object is the one that the user began with.
func (p *patch) checkIdentity(live anyObject) error {
	for _, field := range []string{"apiVersion", "kind"} {
		if live[field] != p.original[field] {
			return fmt.Errorf("%w: the path is that of another object than the text", errOther)
		}
	}
	before, now := p.original.metadata(), live.metadata()
	switch {
	case before["name"] != now["name"] || before["namespace"] != now["namespace"]:
		return fmt.Errorf("%w: the path is that of another object than the text", errOther)
	case before["uid"] != nil && before["uid"] != now["uid"]:
		return fmt.Errorf("%w: it was deleted, and another one of that name was made", errConflict)
	}
	return nil
}

// clone returns a deep copy of a map of JSON.
func clone(m map[string]any) (out map[string]any, err error) {
	text, err := json.Marshal(m)
	if err == nil {
		err = utiljson.Unmarshal(text, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("copying an object: %w", err)
	}
	return out, nil
}

// singleObject reads the YAML of one object and nothing else. The source has problems when it is no object.
func singleObject(text string) (*source, error) {
	sources, err := sourcesOf(text)
	if err == nil && len(sources) != 1 {
		err = errors.New("an edit is of one object, and there are several in it: create them from YAML instead")
	}
	if err != nil {
		return nil, err
	}
	return &sources[0], nil
}

// lastApplied is the annotation in which kubectl apply keeps the text that it was given last.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// keepAnnotations makes a patch that removes all annotations of a text one that removes each of them: the object has
// one that the text did not show.
func keepAnnotations(base, text anyObject) {
	if _, had := base.metadata()["annotations"].(map[string]any); !had || text.metadata() == nil {
		return
	}
	if text.metadata()["annotations"] == nil {
		text.metadata()["annotations"] = map[string]any{}
	}
}

// ofUser returns an object without the fields that the API itself and kubectl apply write. They are not edited, and
// never conflict with a user's change.
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
	if annotations, _ := metadata["annotations"].(map[string]any); annotations[lastApplied] != nil {
		annotations = maps.Clone(annotations)
		delete(annotations, lastApplied)
		if metadata["annotations"] = annotations; len(annotations) == 0 {
			delete(metadata, "annotations")
		}
	}
	out["metadata"] = metadata
	return out
}

// ofUserWith is ofUser with the status, if the object has one.
func ofUserWith(o anyObject) anyObject {
	out := ofUser(o)
	if status, has := o["status"]; has {
		out["status"] = status
	}
	return out
}
