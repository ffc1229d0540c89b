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
	"maps"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// pageSize is how many rows the API is asked for at once.
	pageSize = 500
	// gather is for how long changes are gathered into one message: the eye sees no more.
	gather = 100 * time.Millisecond
	// retryFirst and retryMost are how long a stream waits before it asks the API again, the first time and at most.
	retryFirst = 500 * time.Millisecond
	retryMost  = 3 * time.Second
	// asTable asks for what kubectl prints; an API that cannot gives whole objects.
	asTable = "application/json;as=Table;v=v1;g=meta.k8s.io, application/json"
)

// column is one of a table's.
type column struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	Priority    int32  `json:"priority"`
	Description string `json:"description"`
}

// row is one object of a table, as a page gets it.
type row struct {
	UID       string            `json:"uid"`
	Namespace string            `json:"ns,omitempty"`
	Name      string            `json:"name"`
	Cells     []any             `json:"cells"`
	Created   string            `json:"created,omitempty"`
	Deleting  string            `json:"deleting,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Owner     *owner            `json:"owner,omitempty"`
}

type owner struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// metadata is what the console reads of an object's. managedFields, half of the text, are left out.
type metadata struct {
	Name              string                  `json:"name"`
	Namespace         string                  `json:"namespace"`
	UID               string                  `json:"uid"`
	ResourceVersion   string                  `json:"resourceVersion"`
	CreationTimestamp string                  `json:"creationTimestamp"`
	DeletionTimestamp string                  `json:"deletionTimestamp"`
	Labels            map[string]string       `json:"labels"`
	OwnerReferences   []metav1.OwnerReference `json:"ownerReferences"`
}

// table is an answer of the API: a table, or a list, or one object.
type table struct {
	Kind     string `json:"kind"`
	Metadata struct {
		metadata
		Continue           string `json:"continue"`
		RemainingItemCount *int64 `json:"remainingItemCount"`
	} `json:"metadata"`
	ColumnDefinitions []column `json:"columnDefinitions"`
	Rows              []struct {
		Cells  []any `json:"cells"`
		Object struct {
			Metadata metadata `json:"metadata"`
		} `json:"object"`
	} `json:"rows"`
	Items []struct {
		Metadata metadata `json:"metadata"`
	} `json:"items"`
}

// plainColumns are those of an API that makes no tables.
var plainColumns = []column{{Name: "Name", Type: "string"}, {Name: "Created At", Type: "date"}}

// rows are the objects of an answer.
func (t *table) rows() []row {
	if t.Kind != "Table" {
		out := make([]row, 0, len(t.Items))
		for i := range t.Items {
			m := &t.Items[i].Metadata
			out = append(out, newRow(m, []any{m.Name, m.CreationTimestamp}))
		}
		if len(t.Items) == 0 && t.Metadata.UID != "" {
			m := &t.Metadata.metadata
			out = append(out, newRow(m, []any{m.Name, m.CreationTimestamp}))
		}
		return out
	}
	out := make([]row, 0, len(t.Rows))
	for i := range t.Rows {
		out = append(out, newRow(&t.Rows[i].Object.Metadata, t.Rows[i].Cells))
	}
	return out
}

func newRow(m *metadata, cells []any) row {
	r := row{
		UID: m.UID, Namespace: m.Namespace, Name: m.Name, Cells: cells, Created: m.CreationTimestamp, Deleting: m.DeletionTimestamp,
		Labels: m.Labels,
	}
	if r.UID == "" { // some kinds have none, such as metrics
		r.UID = m.Namespace + "/" + m.Name
	}
	for i := range m.OwnerReferences {
		if o := &m.OwnerReferences[i]; o.Controller != nil && *o.Controller {
			r.Owner = &owner{Kind: o.Kind, Name: o.Name}
		}
	}
	return r
}

// resourceVersion is how new an answer is. A bookmark says it in the row of an object without a name.
func (t *table) resourceVersion() string {
	for i := range t.Rows {
		if rv := t.Rows[i].Object.Metadata.ResourceVersion; rv != "" {
			return rv
		}
	}
	return t.Metadata.ResourceVersion
}

// list is a stream of a kind's objects: all of them, in pages, and then what changes.
type list struct {
	*stream
	path    string
	query   url.Values
	columns []column // those that the page has
}

// run lists and watches until ctx ends. It goes on from revision rv when one is given. It ends with an error only when
// asking again would not help.
func (l *list) run(ctx context.Context, rv string) error {
	wait := retryFirst
	for {
		started := time.Now()
		var err error
		if rv == "" {
			rv, err = l.readAll(ctx)
		}
		if err == nil {
			rv, err = l.watch(ctx, rv)
		}
		switch {
		case ctx.Err() != nil || errors.Is(err, errClosed):
			return errClosed
		case err == nil: // the API ends each watch after some minutes
			wait = retryFirst
			continue
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
			rv = ""
			if err := l.send(message{"type": "reset"}); err != nil {
				return err
			}
			continue
		case apierrors.IsMethodNotSupported(err) && rv != "": // a kind that cannot be watched
			return nil
		case !temporary(err):
			return err
		}
		_, _, text := explain(err)
		if err := l.send(message{"type": "state", "ok": false, "message": text}); err != nil {
			return err
		}
		if time.Since(started) > time.Minute {
			wait = retryFirst
		}
		select {
		case <-ctx.Done():
			return errClosed
		case <-time.After(wait):
		}
		wait = min(2*wait, retryMost)
	}
}

// temporary says whether asking again may help.
func temporary(err error) bool {
	code, _, _ := explain(err)
	return code == 0 || code == http.StatusTooManyRequests || code >= http.StatusInternalServerError && code != http.StatusNotImplemented
}

// readAll sends the whole list, a page at a time, and returns its revision.
func (l *list) readAll(ctx context.Context) (string, error) {
	query := maps.Clone(l.query)
	query.Set("limit", strconv.Itoa(pageSize))
	for {
		t, err := l.read(ctx, query)
		if err != nil {
			return "", err
		}
		if err := l.sendColumns(t); err != nil {
			return "", err
		}
		remaining := int64(0)
		if t.Metadata.RemainingItemCount != nil {
			remaining = *t.Metadata.RemainingItemCount
		}
		rv := t.Metadata.ResourceVersion
		if err := l.send(message{"type": "rows", "rows": t.rows(), "rv": rv, "remaining": remaining}); err != nil {
			return "", err
		}
		if t.Metadata.Continue == "" {
			return rv, l.send(message{"type": "synced", "rv": rv})
		}
		query.Set("continue", t.Metadata.Continue)
	}
}

func (l *list) read(ctx context.Context, query url.Values) (*table, error) {
	response, err := l.s.u.do(ctx, http.MethodGet, l.path, query, http.Header{"Accept": {asTable}}, nil)
	if err != nil {
		return nil, err
	}
	t := &table{}
	return t, read(response, t)
}

// sendColumns sends the columns when the page has others.
func (l *list) sendColumns(t *table) error {
	columns := t.ColumnDefinitions
	if t.Kind != "Table" {
		columns = plainColumns
	}
	if len(columns) == 0 || len(l.columns) > 0 && equal(columns, l.columns) {
		return nil
	}
	l.columns = columns
	return l.send(message{"type": "columns", "columns": columns})
}

// event is one of a watch.
type event struct {
	Type   string          `json:"type"`
	Object json.RawMessage `json:"object"`
}

// watch sends what changes after revision rv, and returns the last one that it has sent.
func (l *list) watch(ctx context.Context, rv string) (string, error) {
	query := maps.Clone(l.query)
	query.Set("watch", "true")
	query.Set("allowWatchBookmarks", "true")
	query.Set("resourceVersion", rv)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	response, err := l.s.u.do(ctx, http.MethodGet, l.path, query, http.Header{"Accept": {asTable}}, nil)
	if err != nil {
		return rv, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		return rv, statusError(response)
	}
	if err := l.send(message{"type": "state", "ok": true}); err != nil {
		return rv, err
	}
	events := make(chan event) // unbuffered: a slow tab slows the reading
	failed := make(chan error, 1)
	go func() {
		defer response.Body.Close()
		failed <- readEvents(ctx, response.Body, events)
	}()
	g := gathered{set: map[string]row{}}
	flush := func() error {
		if g.empty() && g.rv == "" {
			return nil
		}
		rv = g.rv
		m := g.message()
		g = gathered{set: map[string]row{}}
		return l.send(m)
	}
	timer := time.NewTimer(gather)
	timer.Stop()
	for {
		select {
		case e := <-events:
			if err := l.take(e, &g); err != nil {
				return rv, errors.Join(flush(), err)
			}
			if g.events == 1 {
				timer.Reset(gather)
			}
		case <-timer.C:
			if err := flush(); err != nil {
				return rv, err
			}
		case err := <-failed:
			return rv, errors.Join(flush(), err)
		}
	}
}

// readEvents reads a watch until it ends.
func readEvents(ctx context.Context, body io.Reader, events chan<- event) error {
	d := json.NewDecoder(bufio.NewReader(body))
	for {
		var e event
		if err := d.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("watching: %w", err)
		}
		select {
		case events <- e:
		case <-ctx.Done():
			return nil
		}
	}
}

// take adds an event to what is gathered.
func (l *list) take(e event, g *gathered) error {
	if e.Type == "ERROR" {
		return eventError(e.Object)
	}
	var t table
	if err := json.Unmarshal(e.Object, &t); err != nil {
		return fmt.Errorf("watching: %w", err)
	}
	g.rv = t.resourceVersion()
	g.events++
	if e.Type == "BOOKMARK" {
		return nil
	}
	if err := l.sendColumns(&t); err != nil {
		return err
	}
	for _, r := range t.rows() {
		if e.Type == "DELETED" {
			delete(g.set, r.UID)
			g.del = append(g.del, r.UID)
			continue
		}
		g.set[r.UID] = r
	}
	return nil
}

// eventError is the error in a watch.
func eventError(object json.RawMessage) error {
	var s metav1.Status
	if err := json.NewDecoder(bytes.NewReader(object)).Decode(&s); err != nil {
		return fmt.Errorf("watching: %w", err)
	}
	return &apierrors.StatusError{ErrStatus: s}
}

// gathered are the changes that go to a page in one message.
type gathered struct {
	set    map[string]row
	del    []string
	rv     string
	events int
}

func (g *gathered) empty() bool { return len(g.set) == 0 && len(g.del) == 0 }

func (g *gathered) message() message {
	set := make([]row, 0, len(g.set))
	for _, r := range g.set {
		set = append(set, r)
	}
	return message{"type": "changes", "set": set, "del": g.del, "rv": g.rv}
}

// watchObject sends an object and each later version of it.
func (st *stream) watchObject(ctx context.Context, objectPath string) error {
	for {
		var o anyObject
		if err := st.s.u.get(ctx, objectPath, nil, &o); err != nil {
			return err
		}
		rv := o.resourceVersion()
		if err := st.sendObject(o); err != nil {
			return err
		}
		collection, name := path.Split(objectPath)
		query := url.Values{"watch": {"true"}, "fieldSelector": {"metadata.name=" + name}, "resourceVersion": {rv}}
		deleted, err := st.followObject(ctx, path.Clean(collection), query)
		switch {
		case ctx.Err() != nil:
			return errClosed
		case deleted:
			return st.send(message{"type": "deleted"})
		case err != nil && !temporary(err) && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err):
			return nil // it may be read and not watched: the page has it
		}
		select {
		case <-ctx.Done():
			return errClosed
		case <-time.After(retryFirst):
		}
	}
}

// followObject sends each version that a watch brings, until it ends.
func (st *stream) followObject(ctx context.Context, collection string, query url.Values) (deleted bool, err error) {
	response, err := st.s.u.do(ctx, http.MethodGet, collection, query, http.Header{"Accept": {"application/json"}}, nil)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return false, statusError(response)
	}
	d := json.NewDecoder(response.Body)
	for {
		var e event
		if err := d.Decode(&e); err != nil {
			return false, fmt.Errorf("watching: %w", err)
		}
		switch e.Type {
		case "ERROR":
			return false, eventError(e.Object)
		case "DELETED":
			return true, nil
		}
		var o anyObject
		if err := json.Unmarshal(e.Object, &o); err != nil {
			return false, fmt.Errorf("watching: %w", err)
		}
		if err := st.sendObject(o); err != nil {
			return false, err
		}
	}
}

func (st *stream) sendObject(o anyObject) error {
	a, err := newObjectAnswer(o)
	if err != nil {
		return err
	}
	return st.send(message{"type": "object", "object": a.Object, "yaml": a.YAML})
}
