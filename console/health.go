// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// maxHealthPaths limits the lists of one request: those of Kubernetes' own kinds, and 50 kinds of custom objects.
	maxHealthPaths = 100
	// maxChecked and maxCustom limit the objects that are checked of one kind, and of one kind of custom objects.
	maxChecked, maxCustom = 5000, 500
	// maxFindings limits the findings of a response, and maxFindingText the bytes of a text in one. maxGathered limits
	// those from which the worst are chosen.
	maxFindings, maxFindingText, maxGathered = 300, 2000, 3000
	// healthRequests is how many requests one check makes at once. maxHealths is how many checks run at once.
	healthRequests, maxHealths = 4, 2
	// healthTimeout limits the time of a check. Lists that were not read by then have an error.
	healthTimeout = 25 * time.Second
)

// finding is what is wrong with an object. What is a word for it, for which the pages have a sentence. Text is
// Kubernetes' own words, About a name in the sentence, and Have and Want its numbers.
type finding struct {
	Path      string `json:"path"` // of the list with the object
	Namespace string `json:"ns,omitempty"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Created   string `json:"created,omitempty"`
	What      string `json:"what"`
	About     string `json:"about,omitempty"`
	Text      string `json:"text,omitempty"`
	Have      int32  `json:"have,omitempty"`
	Want      int32  `json:"want,omitempty"`
	// Passing findings may end without anybody's help.
	Passing bool `json:"passing,omitempty"`
	// Selector is the labels of the pods that the object needs.
	Selector map[string]string `json:"selector,omitempty"`
}

// checkedKind reports how the list of one kind was read.
type checkedKind struct {
	Path    string `json:"path"`
	Objects int    `json:"objects"`
	// Ready is true when an object has the condition Ready. It is only set for kinds of custom objects.
	Ready bool `json:"ready,omitempty"`
	// More says that the list has more objects than were checked.
	More  bool   `json:"more,omitempty"`
	Code  int    `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
}

type healthResponse struct {
	Findings []finding     `json:"findings"`
	Kinds    []checkedKind `json:"kinds"`
	// Full says that there are more findings than are listed.
	Full bool `json:"full,omitempty"`
}

// checkedObject is the fields of an object that are checked. Kinds have their own spec and status.
type checkedObject struct {
	Metadata struct {
		metadata
		Finalizers []string `json:"finalizers"`
	} `json:"metadata"`
	Spec      json.RawMessage `json:"spec"`
	Status    json.RawMessage `json:"status"`
	Webhooks  json.RawMessage `json:"webhooks"`  // of a webhook configuration
	Endpoints json.RawMessage `json:"endpoints"` // of an endpoint slice
}

// health answers with what is wrong with the objects of the lists that a request names: with those that have not what
// they want, and those with a condition that says so. It holds one object of each list in memory at a time.
func (h *Handler) health(r *http.Request, u *user) (any, error) {
	var in struct{ Paths []string }
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if len(in.Paths) > maxHealthPaths {
		return nil, newRequestError(http.StatusBadRequest, "a check has %d lists at most", maxHealthPaths)
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.o.healthTimeout)
	defer cancel()
	c := newCheck(time.Now())
	out := healthResponse{Kinds: make([]checkedKind, len(in.Paths))}
	atOnce(len(in.Paths), healthRequests, func(i int) { out.Kinds[i] = u.checkList(ctx, c, in.Paths[i]) })
	c.webhooks.checkEndpoints(ctx, c, u)
	out.Findings = c.conclude()
	if out.Full = len(out.Findings) > maxFindings; out.Full {
		out.Findings = out.Findings[:maxFindings]
	}
	return out, nil
}

// checkList checks the objects of one list, a page at a time.
func (u *user) checkList(ctx context.Context, c *check, path string) checkedKind {
	out := checkedKind{Path: path}
	info, err := resolver.NewRequestInfo(&http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}})
	if err != nil || !info.IsResourceRequest || info.Verb != "list" || info.Subresource != "" {
		out.Code, out.Error = http.StatusBadRequest, fmt.Sprintf("%q is not the path of a list", path)
		return out
	}
	judge, known := judgesByKind[info.Resource+"."+info.APIGroup]
	if !known {
		judge = judgeCustom
	}
	size, query, seen := pageSize, url.Values{}, map[string]bool{} // seen are UIDs
	for {
		query.Set("limit", strconv.Itoa(size))
		var page struct {
			Metadata struct{ Continue string }
		}
		response, err := u.request(ctx, http.MethodGet, path, query, http.Header{"Accept": {"application/json"}}, nil)
		if err == nil {
			err = readBy(response, maxResponse, func(d *json.Decoder) error {
				return decodeItems(d, &page.Metadata, func(o *checkedObject) {
					if uid := o.Metadata.UID; uid != "" && seen[uid] {
						return
					}
					seen[o.Metadata.UID] = true
					out.Objects++
					ready := c.checkObject(path, o, judge)
					out.Ready = out.Ready || !known && ready
				})
			})
		}
		if apierrors.IsRequestEntityTooLargeError(err) && size >= 10 { // large objects do not hide the others
			size /= 10
			continue
		}
		if err != nil {
			out.Code, _, out.Error = explainError(err)
			out.Code = cmp.Or(out.Code, http.StatusBadGateway)
			return out
		}
		out.More = page.Metadata.Continue != ""
		if !out.More || !known && out.Objects >= maxCustom || out.Objects >= maxChecked {
			break
		}
		query.Set("continue", page.Metadata.Continue)
	}
	if !out.More {
		c.addWhole(info.Resource)
	}
	return out
}

// decodeItems reads a list, and calls take with each of its objects, which is the same variable. An object that has
// another form than Kubernetes' own is left out.
func decodeItems(d *json.Decoder, meta any, take func(*checkedObject)) error {
	if err := expectDelim(d, '{'); err != nil {
		return err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err //nolint:wrapcheck // the caller does
		}
		switch key {
		case "metadata":
			err = d.Decode(meta)
		case "items":
			err = eachItem(d, take)
		default:
			err = d.Decode(&json.RawMessage{})
		}
		if err != nil {
			return err
		}
	}
	return expectDelim(d, '}')
}

func eachItem(d *json.Decoder, take func(*checkedObject)) error {
	if open, err := d.Token(); err != nil || open == nil {
		return err //nolint:wrapcheck // the caller does
	} else if open != json.Delim('[') {
		return errNoTable
	}
	var text json.RawMessage
	for d.More() {
		if err := d.Decode(&text); err != nil {
			return err //nolint:wrapcheck // the caller does
		}
		var o checkedObject
		if json.Unmarshal(text, &o) == nil {
			take(&o)
		}
	}
	return expectDelim(d, ']')
}

// check gathers findings from the lists of objects. Findings that need several lists are made after all were read.
type check struct {
	now time.Time

	mu       sync.Mutex // guards what follows
	findings []finding
	read     map[string]bool // resources whose list is whole
	services map[string]service
	ready    map[string][2]int32 // the ready endpoints of a Service, and all of them
	ingress  []backend
	runs     map[string]cronRun // the last job of a CronJob
	webhooks webhooks
}

func newCheck(now time.Time) *check {
	return &check{
		now: now, read: map[string]bool{}, services: map[string]service{}, ready: map[string][2]int32{}, runs: map[string]cronRun{},
	}
}

func (c *check) addWhole(resource string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read[resource] = true
}

// readyTimeout is how long an object may take to become ready.
const readyTimeout, deletionTimeout = time.Minute, 5 * time.Minute

// checkObject checks one object. It reports whether the object has the condition Ready.
func (c *check) checkObject(path string, o *checkedObject, judge judge) (ready bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &o.Metadata
	base := finding{Path: path, Namespace: m.Namespace, Name: m.Name, UID: m.UID, Created: m.CreationTimestamp}
	if at, err := time.Parse(time.RFC3339, m.DeletionTimestamp); err == nil {
		if c.now.Sub(at) > deletionTimeout && len(m.Finalizers) > 0 {
			base.What, base.About, base.Passing = "deleting", clipText(fmt.Sprint(m.Finalizers)), true
			c.addFinding(base)
		}
		return false
	}
	young := true
	if at, err := time.Parse(time.RFC3339, m.CreationTimestamp); err == nil {
		young = c.now.Sub(at) < readyTimeout
	}
	return judge(c, o, base, young)
}

func (c *check) add(base finding, what string, passing bool, change ...func(*finding)) {
	base.What, base.Passing = what, passing
	for _, f := range change {
		f(&base)
	}
	c.addFinding(base)
}

// addFinding keeps a finding, unless there are many more than a response has.
func (c *check) addFinding(f finding) {
	if len(c.findings) < maxGathered {
		c.findings = append(c.findings, f)
	}
}

func aboutName(name string) func(*finding) { return func(f *finding) { f.About = clipText(name) } }
func withText(text string) func(*finding)  { return func(f *finding) { f.Text = clipText(text) } }

// clipText returns a text, or the beginning of a long one, which is not kept whole for it.
func clipText(text string) string {
	if len(text) <= maxFindingText {
		return text
	}
	return strings.ToValidUTF8(strings.Clone(text[:maxFindingText]), "")
}

func withCounts(have, want int32) func(*finding) {
	return func(f *finding) { f.Have, f.Want = have, want }
}

func withLabels(labels map[string]string) func(*finding) {
	return func(f *finding) { f.Selector = labels }
}

// controlledBy returns the name of the controller of a kind that owns an object.
func controlledBy(owners []metav1.OwnerReference, kind string) string {
	for i := range owners {
		if o := &owners[i]; o.Controller != nil && *o.Controller && (kind == "" || o.Kind == kind) {
			return o.Name
		}
	}
	return ""
}

// conclude adds the findings that need several lists, and returns all, the worst first.
func (c *check) conclude() []finding {
	for _, r := range c.runs {
		if r.failed {
			c.add(r.base, "lastRun", false, aboutName(r.job), withText(r.reason))
		}
	}
	// The lack of a Service can be known only when all are.
	if c.read["services"] {
		c.findBackends()
	}
	if c.read["endpointslices"] {
		for key, s := range c.services {
			n := c.ready[key]
			if len(s.selector) == 0 || s.external || s.young || n[0] > 0 {
				continue
			}
			if slices.ContainsFunc(c.findings, func(f finding) bool { return f.What == "webhook" && f.About == key }) {
				continue // the webhook's finding says it
			}
			c.add(s.base, "endpoints", true, withCounts(n[0], n[1]), withLabels(s.selector))
		}
	}
	slices.SortFunc(c.findings, func(a, b finding) int {
		return cmp.Or(compareBool(a.Passing, b.Passing), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Namespace, b.Namespace),
			cmp.Compare(a.Name, b.Name))
	})
	if c.findings == nil {
		return []finding{}
	}
	return c.findings
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
