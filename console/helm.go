// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

const (
	// maxRevisions limits the revisions that a list examines. maxReleases limits the releases whose content it reads.
	maxRevisions, maxReleases = 10000, 200
	// maxHistory limits the revisions of one release that are read.
	maxHistory = 20
	// helmRequests is how many requests to the API one list or history makes at once.
	helmRequests = 4
)

// helmDrivers are the kinds of the objects in which Helm stores releases, with their field selectors. The first is
// Helm's default.
var helmDrivers = []struct{ resource, fields string }{{"secrets", "type=helm.sh/release.v1"}, {"configmaps", ""}}

// releaseRow is one revision of a release.
type releaseRow struct {
	Name        string `json:"name"`
	Namespace   string `json:"namespace"`
	Revision    int    `json:"revision"`
	Status      string `json:"status"`
	Chart       string `json:"chart,omitempty"`
	Version     string `json:"version,omitempty"`
	AppVersion  string `json:"appVersion,omitempty"`
	Updated     string `json:"updated,omitempty"`
	Description string `json:"description,omitempty"`
	// Driver is the kind of the object that holds the revision.
	Driver string `json:"driver"`
	// Trouble is the reason for which the other fields are unknown.
	Problem string `json:"trouble,omitempty"`

	object  string // the name of the object that holds the revision
	byChart bool   // a HelmChart made the revision
}

// releasesResponse is the releases of a namespace, or of all namespaces.
type releasesResponse struct {
	Releases []releaseRow `json:"releases"`
	// Partial says what is missing, for users.
	Partial []string `json:"partial"`
}

// releaseResponse is one revision of a release. It has only the requested texts, since they may hold passwords.
type releaseResponse struct {
	releaseRow
	History  []releaseRow `json:"history"`
	Notes    string       `json:"notes,omitempty"`
	Values   string       `json:"values,omitempty"`
	Computed string       `json:"computed,omitempty"` // the chart's own values with those over them
	Manifest string       `json:"manifest,omitempty"`
}

// releases answers with the newest revision of each release.
func (h *Handler) releases(r *http.Request, u *user) (any, error) {
	namespace := r.URL.Query().Get("namespace")
	if namespace != "" && len(validation.IsDNS1123Label(namespace)) > 0 {
		return nil, newRequestError(http.StatusBadRequest, "%q is not the name of a namespace", namespace)
	}
	out := releasesResponse{Releases: []releaseRow{}, Partial: []string{}}
	var failed error
	for _, driver := range helmDrivers {
		rows, err := u.revisions(r.Context(), driver.resource, driver.fields, namespace, "owner=helm")
		if err != nil {
			failed = cmp.Or(failed, err)
			_, _, text := explainError(err)
			out.Partial = append(out.Partial, text)
			continue
		}
		if len(rows) >= maxRevisions {
			text := fmt.Sprintf("the cluster has more than %d revisions in %s: choose a namespace", maxRevisions, driver.resource)
			out.Partial = append(out.Partial, text)
		}
		out.Releases = append(out.Releases, newestRevisions(rows)...)
	}
	if len(out.Partial) == len(helmDrivers) && failed != nil {
		return nil, failed
	}
	slices.SortFunc(out.Releases, func(a, b releaseRow) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Driver, b.Driver))
	})
	if n := len(out.Releases); n > maxReleases {
		out.Partial = append(out.Partial, fmt.Sprintf("the charts of %d releases only are read: choose a namespace for the others",
			maxReleases))
	}
	h.readReleaseRows(r.Context(), u, out.Releases[:min(len(out.Releases), maxReleases)])
	return out, nil
}

// release answers with one revision of a release, the newest if none is named, and with its history.
func (h *Handler) release(r *http.Request, u *user) (any, error) {
	q := r.URL.Query()
	rows, err := u.historyOf(r.Context(), q.Get("namespace"), q.Get("name"), q.Get("driver"))
	if err != nil {
		return nil, err
	}
	wanted := 0
	if text := q.Get("revision"); text != "" {
		wanted = slices.IndexFunc(rows, func(row releaseRow) bool { return strconv.Itoa(row.Revision) == text })
	}
	if wanted < 0 {
		return nil, newRequestError(http.StatusNotFound, noRelease)
	}
	out := releaseResponse{}
	if q.Get("content") == "true" {
		record, err := h.revision(r.Context(), u, rows[wanted])
		if err == nil {
			out.Notes, out.Manifest = shortenText(record.Info.Notes), shortenText(record.Manifest)
			out.Values, err = record.values()
		}
		if err == nil {
			out.Computed, err = record.computed()
		}
		if err != nil {
			return nil, err
		}
	}
	first := max(0, min(wanted, len(rows)-maxHistory))
	out.History = rows[first:min(len(rows), first+maxHistory)]
	h.readReleaseRows(r.Context(), u, out.History)
	out.releaseRow = rows[wanted]
	return out, nil
}

// noRelease is the error for a release, or a revision of one, that is not there.
const noRelease = "there is no such release"

// historyOf returns the revisions of a release, the newest first, and at least one. driver is the kind of objects that
// hold them, or "" for Helm's default.
func (u *user) historyOf(ctx context.Context, namespace, name, driver string) ([]releaseRow, error) {
	driver = cmp.Or(driver, helmDrivers[0].resource)
	at := slices.IndexFunc(helmDrivers, func(d struct{ resource, fields string }) bool { return d.resource == driver })
	if len(validation.IsDNS1123Label(namespace)) > 0 || name == "" || len(validation.IsValidLabelValue(name)) > 0 || at < 0 {
		return nil, apierrors.NewBadRequest("this is not the name of a release")
	}
	rows, err := u.revisions(ctx, driver, helmDrivers[at].fields, namespace, "owner=helm,name="+name)
	if err == nil && len(rows) == 0 {
		err = &apierrors.StatusError{ErrStatus: metav1.Status{
			Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound, Message: noRelease,
		}}
	}
	slices.SortFunc(rows, func(a, b releaseRow) int { return cmp.Compare(b.Revision, a.Revision) })
	return rows, err
}

// revisions returns the revisions in the metadata of Helm's objects. It leaves out objects that Helm did not write.
func (u *user) revisions(ctx context.Context, resource, fields, namespace, selector string) ([]releaseRow, error) {
	path := "/api/v1/" + resource
	if namespace != "" {
		path = "/api/v1/namespaces/" + namespace + "/" + resource
	}
	query := url.Values{"labelSelector": {selector}}
	if fields != "" {
		query.Set("fieldSelector", fields)
	}
	var out []releaseRow
	err := u.readMetadata(ctx, path, query, func(page []metadata) bool {
		for i := range page {
			m := &page[i]
			revision, err := strconv.Atoi(m.Labels["version"])
			if err != nil || m.Labels["name"] == "" || m.Labels["owner"] != "helm" {
				continue
			}
			out = append(out, releaseRow{
				Name: m.Labels["name"], Namespace: m.Namespace, Revision: revision, Status: m.Labels["status"], Driver: resource,
				object: m.Name, byChart: helmjob.MadeByChart(m.Labels, revision),
			})
		}
		return len(out) < maxRevisions
	})
	return out, err
}

// newestRevisions keeps the newest revision of each release.
func newestRevisions(rows []releaseRow) []releaseRow {
	type key struct{ namespace, name string }
	at := map[key]int{}
	var out []releaseRow
	for i := range rows {
		k := key{rows[i].Namespace, rows[i].Name}
		j, found := at[k]
		if !found {
			at[k] = len(out)
			out = append(out, rows[i])
		} else if rows[i].Revision > out[j].Revision {
			out[j] = rows[i]
		}
	}
	return out
}

// readReleaseRows reads the fields that the metadata does not have.
func (h *Handler) readReleaseRows(ctx context.Context, u *user, rows []releaseRow) {
	atOnce(len(rows), helmRequests, func(i int) {
		record, err := h.revision(ctx, u, rows[i])
		if err != nil {
			_, _, rows[i].Problem = explainError(err)
			return
		}
		c := record.Chart.Metadata
		rows[i].Chart, rows[i].Version, rows[i].AppVersion = c.Name, c.Version, c.AppVersion
		rows[i].Updated, rows[i].Description = record.Info.LastDeployed, record.Info.Description
	})
}

// revision reads and unpacks one revision. Few are unpacked at once, since one may be large.
func (h *Handler) revision(ctx context.Context, u *user, row releaseRow) (*storedRelease, error) {
	var object struct{ Data struct{ Release string } }
	path := "/api/v1/namespaces/" + row.Namespace + "/" + row.Driver + "/" + row.object
	if err := u.get(ctx, path, nil, &object); err != nil {
		return nil, err
	}
	text := object.Data.Release
	if row.Driver == "secrets" { // the API returns its values in base64
		inner, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, apierrors.NewBadRequest("the Secret of the release cannot be read: " + err.Error())
		}
		text = string(inner)
	}
	select {
	case h.unpacking <- struct{}{}:
		defer func() { <-h.unpacking }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for other releases: %w", ctx.Err())
	}
	record, err := newStoredRelease(text)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return record, nil
}
