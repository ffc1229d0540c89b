// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// pageSize is the number of rows in one request to the API.
	pageSize = 500
	// gatherDelay is the time for which changes are collected into one message. A user notices no shorter time.
	gatherDelay = 100 * time.Millisecond
	// retryFirst and retryMost are the first and the longest wait of a stream before it asks the API again.
	retryFirst = 500 * time.Millisecond
	retryMost  = 3 * time.Second
	// shortRound is the least duration of a round (a list with its watch) after which the next one begins at once.
	shortRound = time.Second
	// maxEvent limits an event of a watch, in bytes.
	maxEvent = 16 << 20
	// asTable requests a table, as kubectl does. An API that has no tables returns whole objects.
	asTable = "application/json;as=Table;v=v1;g=meta.k8s.io, application/json"
)

// list is a stream of a kind's objects: first all of them, in pages, and then their changes.
type list struct {
	*stream
	path    string
	query   url.Values
	columns []column // the columns that the page has
	sent    bool     // the page has rows of an earlier list
}

// run lists and watches until ctx ends. If revision rv is given, it watches from there without a list. It returns an
// error only when trying again would not help.
func (l *list) run(ctx context.Context, rv string) error {
	wait := retryFirst
	for {
		started := time.Now()
		var err error
		if rv == "" {
			rv, err = l.sendAll(ctx)
		}
		if err == nil {
			rv, err = l.watch(ctx, rv)
		}
		switch {
		case ctx.Err() != nil || errors.Is(err, errClosed):
			return errClosed
		case err == nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || errors.Is(err, errColumns):
			if err != nil {
				rv, l.sent = "", true
			}
			if time.Since(started) > shortRound { // the API ends each watch after some minutes
				wait = retryFirst
				continue
			}
			if !waitDoubling(ctx, &wait) {
				return errClosed
			}
			continue
		case apierrors.IsMethodNotSupported(err) && rv != "": // a kind that cannot be watched
			return nil
		case !isTemporary(err):
			return err
		}
		_, reason, text := explainError(err)
		if err := l.send(message{"type": "state", "ok": false, "reason": reason, "message": text}); err != nil {
			return err
		}
		if time.Since(started) > time.Minute {
			wait = retryFirst
		}
		if !waitDoubling(ctx, &wait) {
			return errClosed
		}
	}
}

// waitDoubling waits, and doubles the next wait. It returns false when ctx has ended.
func waitDoubling(ctx context.Context, wait *time.Duration) bool {
	now := *wait
	*wait = min(2*now, retryMost)
	return timers.Sleep(ctx, now)
}

// isTemporary reports whether trying again may help.
func isTemporary(err error) bool {
	code, _, _ := explainError(err)
	return code == 0 || code == http.StatusTooManyRequests || code >= http.StatusInternalServerError && code != http.StatusNotImplemented
}

// sendAll sends the whole list, a page at a time, and returns its revision.
func (l *list) sendAll(ctx context.Context) (string, error) {
	if l.sent {
		if err := l.send(message{"type": "reset"}); err != nil {
			return "", err
		}
	}
	l.columns, l.sent = nil, true
	query := maps.Clone(l.query)
	query.Set("limit", strconv.Itoa(pageSize))
	for long := false; ; long = true {
		rv, more, err := l.readPage(ctx, query)
		if err != nil {
			return "", err
		}
		if more == "" {
			if long {
				l.s.h.o.Ended()
			}
			return rv, l.send(message{"type": "synced", "rv": rv})
		}
		query.Set("continue", more)
	}
}

// readPage sends one page. It returns the page's revision and the token for the next page.
func (l *list) readPage(ctx context.Context, query url.Values) (rv, more string, err error) {
	if err := l.acquirePage(ctx); err != nil {
		return "", "", err
	}
	defer l.leavePage()
	t, err := l.read(ctx, query)
	for size := pageSize / 10; apierrors.IsRequestEntityTooLargeError(err) && size > 0; size /= 10 {
		query.Set("limit", strconv.Itoa(size)) // objects with a megabyte of labels do not hide the others
		t, err = l.read(ctx, query)
	}
	if err != nil {
		return "", "", err
	}
	if err := l.sendColumns(t); err != nil {
		return "", "", err
	}
	remaining := int64(0)
	if t.Metadata.RemainingItemCount != nil {
		remaining = *t.Metadata.RemainingItemCount
	}
	rv = t.Metadata.ResourceVersion
	return rv, t.Metadata.Continue, l.send(message{"type": "rows", "rows": t.rows(), "rv": rv, "remaining": remaining})
}

func (l *list) read(ctx context.Context, query url.Values) (*table, error) {
	response, err := l.s.u.request(ctx, http.MethodGet, l.path, query, http.Header{"Accept": {asTable}}, nil)
	if err != nil {
		return nil, err
	}
	return readTable(response)
}

// errColumns says that a kind's columns have changed, so that the rows of the page are outdated.
var errColumns = errors.New("the columns have changed")

// sendColumns sends the columns, if the page has none yet. It returns errColumns if the page has other columns.
func (l *list) sendColumns(t *table) error {
	columns := t.ColumnDefinitions
	if t.Kind != "Table" {
		columns = plainColumns
	}
	switch {
	case len(columns) == 0 || len(l.columns) > 0 && equal(columns, l.columns):
		return nil
	case len(l.columns) > 0:
		return errColumns
	}
	l.columns = columns
	return l.send(message{"type": "columns", "columns": columns})
}

// watch sends changes after revision rv. It returns the last revision that it has sent.
func (l *list) watch(ctx context.Context, rv string) (string, error) {
	query := maps.Clone(l.query)
	query.Set("watch", "true")
	query.Set("allowWatchBookmarks", "true")
	query.Set("resourceVersion", rv)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	response, err := l.s.u.request(ctx, http.MethodGet, l.path, query, http.Header{"Accept": {asTable}}, nil)
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
	g := pendingChanges{rows: map[string]row{}}
	flush := func() error {
		if g.empty() && g.rv == "" {
			return nil
		}
		rv = g.rv
		m := g.message()
		g = pendingChanges{rows: map[string]row{}}
		return l.send(m)
	}
	timer := time.NewTimer(gatherDelay)
	timer.Stop()
	for {
		select {
		case e := <-events:
			if err := l.add(e, &g); err != nil {
				return rv, errors.Join(flush(), err)
			}
			if g.events == 1 {
				timer.Reset(gatherDelay)
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

func (l *list) add(e event, g *pendingChanges) error {
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
			delete(g.rows, r.UID)
			g.del = append(g.del, r.UID)
			continue
		}
		g.del = slices.DeleteFunc(g.del, func(uid string) bool { return uid == r.UID }) // the selection did not match it for a moment
		g.rows[r.UID] = r
	}
	return nil
}
