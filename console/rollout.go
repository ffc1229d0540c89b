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
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

const (
	// maxRevisionBytes limits the revisions of a workload, in bytes. The API keeps ten revisions by default.
	maxRevisionBytes   = 8 << 20
	revisionAnnotation = "deployment.kubernetes.io/revision"
	causeAnnotation    = "kubernetes.io/change-cause"
	hashLabel          = "pod-template-hash"
)

// keptAnnotations stay unchanged when a Deployment is rolled back, as with kubectl rollout undo. All other annotations
// are set to those of the revision.
var keptAnnotations = []string{
	"kubectl.kubernetes.io/last-applied-configuration", revisionAnnotation, "deployment.kubernetes.io/revision-history",
	"deployment.kubernetes.io/desired-replicas", "deployment.kubernetes.io/max-replicas", "deprecated.deployment.rollback.to",
}

// Revisions are read and written here, and not by k8s.io/kubectl/pkg/polymorphichelpers. That package adds 123
// packages, takes no context, and does not return the result of a dry run.

// revision is an earlier state of a workload, or the current one.
type revision struct {
	Number  int64       `json:"number"`
	Created metav1.Time `json:"created"`
	Images  []string    `json:"images"`
	Cause   string      `json:"cause,omitempty"`

	kind  types.PatchType
	patch []byte // changes the workload from its current state to this revision
}

// rollout answers with the revisions of a workload, the newest first. The newest is the current one.
func (h *Handler) rollout(r *http.Request, u *user) (any, error) {
	_, revisions, err := u.revisionsOf(r.Context(), r.URL.Query().Get("path"))
	if err != nil {
		return nil, err
	}
	return map[string]any{"revisions": revisions}, nil
}

// undo rolls a workload back to a revision. With dryRun it only answers with the changes.
func (h *Handler) undo(r *http.Request, u *user) (any, error) {
	var in struct {
		Path     string `json:"path"`
		Revision int64  `json:"revision"`
		DryRun   bool   `json:"dryRun"`
	}
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if h.o.ReadOnly && !in.DryRun {
		return nil, newRequestError(http.StatusForbidden, readOnly)
	}
	var before, after anyObject
	var err error
	for range editTries {
		before, after, err = u.undoOnce(r.Context(), in.Path, in.Revision, in.DryRun)
		if !apierrors.IsConflict(err) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	diff, err := objectDifference(before, after)
	if err != nil {
		return nil, err
	}
	return map[string]string{"diff": diff}, nil
}

// undoOnce rolls a workload back to a revision. It returns a conflict error when another client writes the workload
// at the same time.
func (u *user) undoOnce(ctx context.Context, path string, number int64, dryRun bool) (before, after anyObject, err error) {
	live, revisions, err := u.revisionsOf(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	at := slices.IndexFunc(revisions, func(r revision) bool { return r.Number == number })
	if at < 0 {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("there is no revision %d any more", number))
	}
	if spec, _ := live["spec"].(map[string]any); spec["paused"] == true {
		return nil, nil, apierrors.NewBadRequest("a Deployment that is paused does not go back: resume it first")
	}
	query := url.Values{"fieldManager": {fieldManager}}
	if dryRun {
		query.Set("dryRun", "All")
	}
	err = u.write(ctx, http.MethodPatch, path, query, string(revisions[at].kind), revisions[at].patch, &after)
	return live, after, err
}

// workload is the fields that are read of a Deployment, StatefulSet or DaemonSet.
type workload struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Selector *metav1.LabelSelector `json:"selector"`
	} `json:"spec"`
}

// revisionsOf reads a workload, and the revisions that the API keeps of it, the newest first.
func (u *user) revisionsOf(ctx context.Context, path string) (anyObject, []revision, error) {
	if err := objectPath(path); err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	info, err := resolver.NewRequestInfo(&http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}})
	if err != nil || info.APIGroup != "apps" || !slices.Contains([]string{"deployments", "statefulsets", "daemonsets"}, info.Resource) {
		return nil, nil, apierrors.NewBadRequest("only Deployments, StatefulSets and DaemonSets have revisions")
	}
	var live anyObject
	if err := u.get(ctx, path, nil, &live); err != nil {
		return nil, nil, err
	}
	var of workload
	if err := convertObject(live, &of); err != nil {
		return nil, nil, err
	}
	collection := "controllerrevisions"
	if info.Resource == "deployments" {
		collection = "replicasets"
	}
	var list struct {
		Items []anyObject `json:"items"`
	}
	query := url.Values{"labelSelector": {metav1.FormatLabelSelector(of.Spec.Selector)}}
	at := "/apis/apps/v1/namespaces/" + url.PathEscape(of.Namespace) + "/" + collection
	if err := u.getAtMost(ctx, at, query, &list, maxRevisionBytes); err != nil {
		return nil, nil, err
	}
	out := []revision{}
	for _, item := range list.Items {
		r, err := of.revision(item)
		if err != nil {
			return nil, nil, err
		}
		if r != nil {
			out = append(out, *r)
		}
	}
	slices.SortFunc(out, func(a, b revision) int { return cmp.Compare(b.Number, a.Number) })
	return live, out, nil
}

// revision reads a ReplicaSet or a ControllerRevision. It returns nil when the object does not belong to the workload.
func (of *workload) revision(item anyObject) (*revision, error) {
	var meta struct {
		metav1.ObjectMeta `json:"metadata"`
		Revision          int64 `json:"revision"`
	}
	if err := convertObject(item, &meta); err != nil {
		return nil, err
	}
	if !metav1.IsControlledBy(&meta, of) {
		return nil, nil //nolint:nilnil // not the workload's
	}
	r := &revision{Number: meta.Revision, Created: meta.CreationTimestamp, Cause: meta.Annotations[causeAnnotation]}
	var from struct {
		Spec struct {
			Template map[string]any `json:"template"`
		} `json:"spec"`
	}
	var patch any
	if data, isRevision := item["data"].(map[string]any); isRevision {
		r.kind = types.StrategicMergePatchType
		if err := convertObject(data, &from); err != nil {
			return nil, err
		}
		data["metadata"] = map[string]any{"resourceVersion": of.ResourceVersion} // a write in between is a conflict
		patch = data
	} else {
		number, err := strconv.ParseInt(meta.Annotations[revisionAnnotation], 10, 64)
		if err != nil {
			return nil, nil //nolint:nilerr,nilnil // the controller has not numbered it yet
		}
		r.Number, r.kind = number, types.JSONPatchType
		if err := convertObject(item, &from); err != nil {
			return nil, err
		}
		patch = of.restore(from.Spec.Template, meta.Annotations)
	}
	var template corev1.PodTemplateSpec
	if err := convertObject(from.Spec.Template, &template); err != nil {
		return nil, err
	}
	for _, c := range template.Spec.Containers {
		r.Images = append(r.Images, c.Image)
	}
	var err error
	if r.patch, err = json.Marshal(patch); err != nil {
		return nil, fmt.Errorf("writing the patch: %w", err)
	}
	return r, nil
}

// restore returns a patch that sets the template and the annotations of a Deployment to those of a ReplicaSet, as
// kubectl does. It modifies template: it removes the label that the controller has added.
func (of *workload) restore(template map[string]any, annotations map[string]string) []map[string]any {
	metadata, _ := template["metadata"].(map[string]any)
	labels, _ := metadata["labels"].(map[string]any)
	delete(labels, hashLabel)
	wanted := map[string]string{}
	for k, v := range annotations {
		if !slices.Contains(keptAnnotations, k) {
			wanted[k] = v
		}
	}
	for _, k := range keptAnnotations {
		if v, has := of.Annotations[k]; has {
			wanted[k] = v
		}
	}
	return []map[string]any{
		{"op": "replace", "path": "/spec/template", "value": template},
		{"op": "add", "path": "/metadata/annotations", "value": wanted},
		{"op": "replace", "path": "/metadata/resourceVersion", "value": of.ResourceVersion},
	}
}

// objectDifference returns a unified diff of two versions of an object, without the fields that the API itself writes.
func objectDifference(before, after anyObject) (string, error) {
	a, err := ofUser(before).yaml()
	if err != nil {
		return "", err
	}
	b, err := ofUser(after).yaml()
	if err != nil {
		return "", err
	}
	return unifiedDiff(a, b)
}

// convertObject converts an object of any kind to a type.
func convertObject(from, to any) error {
	text, err := json.Marshal(from)
	if err == nil {
		err = utiljson.Unmarshal(text, to)
	}
	if err != nil {
		return errors.Join(errors.New("the API's answer is not as it should be"), err)
	}
	return nil
}
