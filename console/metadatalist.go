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

// asMetadata asks for what each object says of itself in its metadata, and for nothing that it holds.
const asMetadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"

// readMetadata reads the metadata of the objects at path, a page at a time, for as long as take wants more.
func (u *user) readMetadata(ctx context.Context, path string, query url.Values, take func(page []metadata) (more bool)) error {
	query = maps.Clone(query)
	query.Set("limit", strconv.Itoa(pageSize))
	for {
		response, err := u.do(ctx, http.MethodGet, path, query, http.Header{"Accept": {asMetadata}}, nil)
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

// atOnce calls f with each number below n, most of them at once, and returns when all have returned.
func atOnce(n, most int, f func(i int)) {
	next := make(chan int) // unbuffered: a number is given to who is free
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
