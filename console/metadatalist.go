// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"sync"
)

// asMetadata requests only the metadata of each object.
const asMetadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"

// readMetadata reads the metadata of the objects at path, a page at a time, until take returns false.
func (u *user) readMetadata(ctx context.Context, path string, query url.Values, take func(page []metadata) (more bool)) error {
	query = maps.Clone(query)
	query.Set("limit", strconv.Itoa(pageSize))
	for {
		response, err := u.request(ctx, http.MethodGet, path, query, http.Header{"Accept": {asMetadata}}, nil)
		if err != nil {
			return err
		}
		var t table
		if err := read(response, &t, maxResponse); err != nil {
			return err
		}
		page := make([]metadata, len(t.Items))
		for i := range t.Items {
			page[i] = t.Items[i].Metadata
		}
		if !take(page) || t.Metadata.Continue == "" {
			return nil
		}
		query.Set("continue", t.Metadata.Continue)
	}
}

// atOnce calls f with each number below n. Up to most calls run at once. It returns when all calls have returned.
func atOnce(n, most int, f func(i int)) {
	next := make(chan int) // unbuffered: a number goes to a worker that is free
	var workers sync.WaitGroup
	for range min(n, most) {
		workers.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	workers.Wait()
}
