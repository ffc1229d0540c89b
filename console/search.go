// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// maxSearchPaths limits the kinds of one search, maxFound its results, and maxSearched the objects of one kind that
	// it examines.
	maxSearchPaths, maxFound, maxSearched = 1000, 500, 20000
	// searchRequests is how many requests one search makes at once. maxSearches is how many searches run at once.
	searchRequests, maxSearches = 4, 2
	// searchTimeout limits the time of a search, so that other users' searches can run.
	searchTimeout = 30 * time.Second
)

var errSearchTooLong = fmt.Errorf("the search was ended after %s: choose a namespace", searchTimeout)

type foundObject struct {
	Path      string `json:"path"` // of the list with the object
	Namespace string `json:"ns,omitempty"`
	Name      string `json:"name"`
	Created   string `json:"created,omitempty"`
	// Label is the label that matched, if the name did not.
	Label string `json:"label,omitempty"`
}

// search looks for a text in the names and labels of objects, in the lists at paths. It sends each match to the page
// when it finds it. It stops after maxFound matches, or after searchTimeout. Lists that the user may not read, and
// kinds that cannot be listed, give no results.
func (st *stream) search(ctx context.Context, text string, paths []string) error {
	text = strings.ToLower(strings.TrimSpace(text))
	if text == "" || len(paths) > maxSearchPaths {
		return apierrors.NewBadRequest(fmt.Sprintf("a search has a text, and %d kinds at most", maxSearchPaths))
	}
	release, err := st.s.h.searches.acquire(ctx, st.s.name)
	if err != nil {
		return errClosed
	}
	defer release()
	ctx, cancel := context.WithTimeoutCause(ctx, searchTimeout, errSearchTooLong)
	defer cancel()
	var (
		mu    sync.Mutex // guards what follows, and keeps the messages in order
		count int
		done  int
		lost  error // why the tab receives no more
	)
	report := func(m message, rows []foundObject, end bool) bool {
		mu.Lock()
		defer mu.Unlock()
		rows = rows[:min(len(rows), maxFound-count)]
		count += len(rows)
		if end {
			done++
		}
		m["type"], m["found"], m["done"], m["of"], m["full"] = "found", rows, done, len(paths), count >= maxFound
		if lost == nil && (end || len(rows) > 0) {
			lost = st.send(m)
		}
		if lost != nil || count >= maxFound {
			cancel()
			return false
		}
		return true
	}
	atOnce(len(paths), searchRequests, func(i int) {
		if ctx.Err() != nil {
			return
		}
		seen, more := 0, true
		err := st.s.u.readMetadata(ctx, paths[i], url.Values{}, func(page []metadata) bool {
			seen += len(page)
			more = report(message{}, matchingObjects(page, paths[i], text), false)
			return more && seen < maxSearched
		})
		if !more || ctx.Err() != nil {
			return
		}
		m := message{}
		switch {
		case err != nil:
			code, _, why := explainError(err)
			if code != http.StatusForbidden && code != http.StatusNotFound && code != http.StatusMethodNotAllowed {
				m["trouble"] = why
			}
		case seen >= maxSearched:
			m["trouble"] = fmt.Sprintf("%s: the first %d objects only were searched", paths[i], seen)
		}
		report(m, nil, true)
	})
	if lost == nil && errors.Is(context.Cause(ctx), errSearchTooLong) {
		return apierrors.NewTimeoutError(errSearchTooLong.Error(), 0)
	}
	return lost
}

// matchingObjects returns the objects of a page whose name or labels contain a text.
func matchingObjects(page []metadata, path, text string) []foundObject {
	var out []foundObject
	for i := range page {
		m := &page[i]
		f := foundObject{Path: path, Namespace: m.Namespace, Name: m.Name, Created: m.CreationTimestamp}
		if strings.Contains(strings.ToLower(m.Name), text) {
			out = append(out, f)
			continue
		}
		for key, value := range m.Labels {
			if label := key + "=" + value; strings.Contains(strings.ToLower(label), text) && (f.Label == "" || label < f.Label) {
				f.Label = label
			}
		}
		if f.Label != "" {
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, func(a, b foundObject) int { return cmp.Compare(a.Label, b.Label) }) // matches by name first
	return out
}
