// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	kyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

const (
	// maxChanges limits the child processes that change releases, for all users. Each user has one.
	maxChanges = 2
	// maxHelmObjects limits the objects of a release that are named before it is changed.
	maxHelmObjects = 2000
	// helmKeep is Helm's annotation of an object that an uninstallation leaves.
	helmKeep = "helm.sh/resource-policy"
	// unmanagedChart is k3s' annotation of a HelmChart whose release is not changed by it.
	unmanagedChart = "helmcharts.helm.cattle.io/unmanaged"
)

// helmObject is an object in a release's manifest, or a hook.
type helmObject struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"` // only when the manifest names one
	Name      string `json:"name"`
	// Kept says that an uninstallation leaves the object.
	Kept bool `json:"kept,omitempty"`
	// Events and Manifest are of a hook.
	Events   []string `json:"events,omitempty"`
	Manifest string   `json:"manifest,omitempty"`
}

// previewResponse describes the effect of a change of a release. Its values and manifests may hold passwords.
type previewResponse struct {
	// Shown is to be sent with the change: the newest revision, and the one to go back to.
	Shown []helmjob.Shown `json:"shown"`
	// Values, Computed and Manifest are the differences between the two revisions.
	Values   string `json:"values"`
	Computed string `json:"computed"`
	Manifest string `json:"manifest"`
	// Objects are the objects that are written or removed. Hooks are the hooks that run.
	Objects []helmObject `json:"objects"`
	Hooks   []helmObject `json:"hooks"`
	// Removed are those that a rollback removes: the earlier revision does not have them.
	Removed []helmObject `json:"removed,omitempty"`
	// Refusal says why the release is not changed here. It is empty if it can be.
	Refusal string `json:"refusal"`
}

// previewChange answers with what a change from the revision from to the revision to would do. Without to the change is
// the removal of the release. The revision from need not be the newest: the answer compares two revisions then.
func (h *Handler) previewChange(r *http.Request, u *user) (any, error) {
	q := r.URL.Query()
	return h.preview(r.Context(), u, q.Get("namespace"), q.Get("name"), q.Get("driver"), q.Get("from"), q.Get("to"))
}

func (h *Handler) preview(ctx context.Context, u *user, namespace, name, driver, from, to string) (*previewResponse, error) {
	rows, err := u.historyOf(ctx, namespace, name, driver)
	if err != nil {
		return nil, err
	}
	out := &previewResponse{}
	read := func(revision string) (*storedRelease, error) {
		at := slices.IndexFunc(rows, func(row releaseRow) bool { return strconv.Itoa(row.Revision) == revision })
		if at < 0 {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("there is no revision %s any more", revision))
		}
		record, err := h.revision(ctx, u, rows[at])
		if err == nil {
			out.Shown = append(out.Shown, helmjob.Shown{Revision: rows[at].Revision, Sum: record.Sum()})
		}
		return record, err
	}
	before, err := read(from)
	if err != nil {
		return nil, err
	}
	if out.Refusal, err = u.unchangeable(ctx, rows[0], before); err != nil {
		return nil, err
	}
	if to == "" {
		return out, out.describe(before, "pre-delete", "post-delete")
	}
	after, err := read(to)
	if err != nil {
		return nil, err
	}
	if err := out.compare(before, after); err != nil {
		return nil, err
	}
	if err := out.describe(after, "pre-rollback", "post-rollback"); err != nil {
		return nil, err
	}
	out.Removed, err = helmObjects(before.Manifest)
	out.Removed = slices.DeleteFunc(out.Removed, func(o helmObject) bool {
		return slices.ContainsFunc(out.Objects, func(p helmObject) bool {
			return p.Kind == o.Kind && p.Name == o.Name && cmp.Or(p.Namespace, namespace) == cmp.Or(o.Namespace, namespace)
		})
	})
	return out, err
}

// compare puts the differences between two revisions into the answer.
func (p *previewResponse) compare(before, after *storedRelease) error {
	for _, part := range []struct {
		to *string
		of func(*storedRelease) (string, error)
	}{
		{&p.Values, (*storedRelease).values}, {&p.Computed, (*storedRelease).computed}, {&p.Manifest, (*storedRelease).objectsAndHooks},
	} {
		a, err := part.of(before)
		if err != nil {
			return err
		}
		b, err := part.of(after)
		if err != nil {
			return err
		}
		if a == b {
			continue
		}
		if *part.to, err = unifiedDiff(a, b); err != nil {
			return err
		}
	}
	return nil
}

// objectsAndHooks returns the manifest with the hooks, as text for a comparison.
func (r *storedRelease) objectsAndHooks() (string, error) {
	out := strings.TrimSuffix(r.Manifest, "\n") + "\n"
	for _, hook := range r.Hooks {
		out += "---\n# hook: " + strings.Join(hook.Events, ", ") + "\n" + strings.TrimSuffix(hook.Manifest, "\n") + "\n"
	}
	if len(out) > maxReleaseText {
		return "", tooLargeRelease()
	}
	return out, nil
}

func tooLargeRelease() error {
	return apierrors.NewBadRequest(fmt.Sprintf("the release's manifest is longer than %d MB: use helm in a shell", maxReleaseText>>20))
}

func tooManyObjects() error {
	return apierrors.NewBadRequest(fmt.Sprintf("the release has more than %d objects: use helm in a shell", maxHelmObjects))
}

// describe puts the release's objects, and the hooks of some events, into the answer.
func (p *previewResponse) describe(r *storedRelease, events ...string) (err error) {
	p.Objects, p.Hooks = []helmObject{}, []helmObject{}
	for _, hook := range r.Hooks {
		if !slices.ContainsFunc(hook.Events, func(e string) bool { return slices.Contains(events, e) }) {
			continue
		}
		made, err := helmObjects(hook.Manifest) // which Helm makes, whatever the record's kind and name are
		if err != nil {
			return err
		}
		for i, o := range made {
			if o.Events, o.Kept = hook.Events, false; i == 0 {
				o.Manifest = shortenText(hook.Manifest) // that of all
			}
			p.Hooks = append(p.Hooks, o)
		}
		if len(p.Hooks) > maxHelmObjects {
			return tooManyObjects()
		}
	}
	p.Objects, err = helmObjects(r.Manifest)
	return err
}

// helmDocument has the fields that the console reads of an object in a manifest.
type helmDocument struct {
	Kind     string            `json:"kind"`
	Metadata metav1.ObjectMeta `json:"metadata"`
	Items    []helmDocument    `json:"items"` // of a List, which Helm replaces by its items
}

func helmObjects(manifest string) ([]helmObject, error) {
	if len(manifest) > maxReleaseText {
		return nil, tooLargeRelease()
	}
	out := []helmObject{}
	documents := kyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(manifest)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		var one helmDocument
		if err == nil {
			err = fewAliases(string(document))
		}
		if err == nil {
			document, err = yaml.YAMLToJSON(document)
		}
		if err == nil {
			err = utiljson.Unmarshal(document, &one) // which takes keys as the API does: Kind is not kind
		}
		if err != nil {
			return nil, apierrors.NewBadRequest("the release's manifest cannot be read: " + err.Error())
		}
		if out = one.add(out, one.isKept()); len(out) > maxHelmObjects {
			return nil, tooManyObjects()
		}
	}
}

// isKept says whether an uninstallation leaves a document's objects. Helm reads it of a List, not of its items.
func (d *helmDocument) isKept() bool {
	return strings.EqualFold(strings.TrimSpace(d.Metadata.Annotations[helmKeep]), "keep")
}

func (d *helmDocument) add(to []helmObject, kept bool) []helmObject {
	if d.Kind != "" && len(d.Items) == 0 { // without a kind it is a comment
		m := &d.Metadata
		to = append(to, helmObject{Kind: d.Kind, Namespace: m.Namespace, Name: cmp.Or(m.Name, m.GenerateName), Kept: kept})
	}
	for i := range d.Items {
		to = d.Items[i].add(to, kept)
	}
	return to
}

// unchangeable says why a release is not changed here. It returns "" if it can be.
func (u *user) unchangeable(ctx context.Context, newest releaseRow, record *storedRelease) (string, error) {
	if record != nil {
		since, _ := time.Parse(time.RFC3339Nano, record.Info.LastDeployed) // a time that cannot be read is long ago
		if helmjob.AtWork(newest.Status, since, time.Now()) {
			return fmt.Sprintf("The release is %s: another helm is at work on it, or has died. It can be changed here %d minutes after it began.",
				newest.Status, int(helmjob.UserLimit.Minutes())), nil
		}
	}
	chart, err := u.chartOf(ctx, newest)
	if err != nil || chart == "" {
		return "", err
	}
	return "The release is made by " + chart + ", which would bring it back. To change it, edit the HelmChart; to remove it, delete the HelmChart.", nil
}

// chartOf names the HelmChart that makes a release. It returns "" if there is none that the user may see, and the
// newest revision does not say that there is one.
func (u *user) chartOf(ctx context.Context, newest releaseRow) (string, error) {
	const group = "/apis/helm.cattle.io/v1/"
	for _, path := range []string{group + "helmcharts", group + "namespaces/" + newest.Namespace + "/helmcharts"} {
		var list struct {
			Items []struct {
				Metadata metav1.ObjectMeta `json:"metadata"`
				Spec     struct {
					TargetNamespace string `json:"targetNamespace"`
					Driver          string `json:"driver"`
				} `json:"spec"`
			} `json:"items"`
		}
		err := u.get(ctx, path, url.Values{"fieldSelector": {"metadata.name=" + newest.Name}}, &list) // the chart's name is the release's
		switch {
		case apierrors.IsForbidden(err):
			continue
		case apierrors.IsNotFound(err):
			return "", nil // the cluster has no such kind
		case err != nil:
			return "", err
		}
		for _, c := range list.Items {
			target := cmp.Or(c.Spec.TargetNamespace, c.Metadata.Namespace)
			_, unmanaged := c.Metadata.Annotations[unmanagedChart]
			if target == newest.Namespace && !unmanaged && (c.Spec.Driver == "configmap") == (newest.Driver == "configmaps") {
				return "the HelmChart " + c.Metadata.Namespace + "/" + c.Metadata.Name, nil
			}
		}
		if path == group+"helmcharts" {
			return "", nil
		}
	}
	if newest.byChart {
		return "a HelmChart that you may not see", nil
	}
	return "", nil
}

// changeRequest is a page's request to change a release.
type changeRequest struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Driver    string `json:"driver"`
	// Shown is from the preview: the newest revision, and the one to go back to. Without the latter the release is
	// removed.
	Shown []helmjob.Shown `json:"shown"`
}

// changeRelease rolls a release back, or removes it, by Helm in a child process. The child has the user's own rights.
// It goes on when the page is closed, up to helmjob.UserLimit, but ends with the console.
func (h *Handler) changeRelease(r *http.Request, u *user) (any, error) {
	var in changeRequest
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if h.o.ReadOnly {
		return nil, newRequestError(http.StatusForbidden, readOnly)
	}
	name, err := h.authenticate(r.Context(), u)
	if err != nil {
		return nil, err
	}
	release, err := h.changes.acquire(r.Context(), name)
	if err != nil {
		return nil, newRequestError(http.StatusServiceUnavailable, "Helm is busy with other changes: %s", err)
	}
	defer release()
	result, err := h.change(r.Context(), u, &in)
	if err == nil && result.Failed() {
		err = newRequestError(http.StatusConflict, "%s", result.Message)
	}
	if err != nil {
		return nil, err
	}
	return map[string]string{"message": result.Message}, nil
}

func (h *Handler) change(ctx context.Context, u *user, in *changeRequest) (*helmjob.Result, error) {
	if h.o.Program == "" {
		return nil, apierrors.NewBadRequest("this console has no Helm: use helm in a shell")
	}
	rows, err := u.historyOf(ctx, in.Namespace, in.Name, in.Driver)
	if err != nil {
		return nil, err
	}
	refusal, err := u.unchangeable(ctx, rows[0], nil) // the child looks for another helm
	if err != nil {
		return nil, err
	}
	if refusal != "" {
		return &helmjob.Result{Reason: helmjob.BadRequest, Message: refusal}, nil
	}
	q := &helmjob.Request{Operation: helmjob.RollBack, Namespace: in.Namespace, Release: in.Name, Shown: in.Shown}
	if len(in.Shown) == 1 {
		q.Operation = helmjob.Remove
	}
	if in.Driver == "configmaps" {
		q.Driver = "configmap"
	}
	return h.runHelm(ctx, u, q)
}

// runHelm does a request in a child process with the user's credentials, which stay in this process.
func (h *Handler) runHelm(ctx context.Context, u *user, q *helmjob.Request) (*helmjob.Result, error) {
	h.open.Add(1)
	defer h.open.Done()
	h.changing.Add(1)
	defer h.changing.Add(-1)
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), helmjob.UserLimit,
		fmt.Errorf("it took longer than %s, and the release may be half changed: look at its history", helmjob.UserLimit))
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-h.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() {
		cancel()
		<-watched
	}()
	access, err := helmjob.OpenAccess(ctx, "", u.config)
	if err != nil {
		return nil, err
	}
	defer access.Close()
	q.Socket = access.Path()
	return helmjob.Runner{Program: h.o.Program, Env: helmjob.Environment()}.Run(ctx, q)
}
