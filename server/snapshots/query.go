// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/coracle-k8s/coracle/internal/config"
)

// S3Query is the query parameter with a request's own S3 settings: a config.AskedS3 in JSON.
const S3Query = "s3"

type s3ContextKey struct{}

// WithQuery returns a context that carries the S3 settings of one request, for Options.S3.
func WithQuery(ctx context.Context, a config.AskedS3) context.Context {
	return context.WithValue(ctx, s3ContextKey{}, a)
}

// QueryOf returns the S3 settings that ctx carries. It returns the zero value for a request without any, and for the
// schedule.
func QueryOf(ctx context.Context) config.AskedS3 {
	a, _ := ctx.Value(s3ContextKey{}).(config.AskedS3)
	return a
}

// queryInContext adds a request's S3 settings to its context.
func queryInContext(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if text := r.URL.Query().Get(S3Query); text != "" {
			var a config.AskedS3
			if err := json.Unmarshal([]byte(text), &a); err != nil {
				http.Error(w, "the settings for S3 cannot be read: "+err.Error(), http.StatusBadRequest)
				return
			}
			r = r.WithContext(WithQuery(r.Context(), a))
		}
		next.ServeHTTP(w, r)
	})
}
