// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/coracle-k8s/coracle/internal/config"
)

// S3Query is the part of a request that says, in JSON, what it has of S3 for itself: an config.AskedS3.
const S3Query = "s3"

type queryKey struct{}

// WithQuery returns a context in which Options.S3 finds what one request says of S3.
func WithQuery(ctx context.Context, a config.AskedS3) context.Context {
	return context.WithValue(ctx, queryKey{}, a)
}

// QueryOf is what the request says; the zero value if that is nothing, and for the schedule.
func QueryOf(ctx context.Context) config.AskedS3 {
	a, _ := ctx.Value(queryKey{}).(config.AskedS3)
	return a
}

// queryInContext hands requests on with what they say of S3 in their context.
func queryInContext(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if text := r.URL.Query().Get(S3Query); text != "" {
			var a config.AskedS3
			if err := json.Unmarshal([]byte(text), &a); err != nil {
				http.Error(w, "the settings for S3 are not understood: "+err.Error(), http.StatusBadRequest)
				return
			}
			r = r.WithContext(WithQuery(r.Context(), a))
		}
		next.ServeHTTP(w, r)
	})
}
