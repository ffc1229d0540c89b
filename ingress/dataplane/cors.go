// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// allowedOrigin is what scripts of the request's origin are told; empty for an origin that is not among those of the route.
func (x *exchange) allowedOrigin(c *table.CORS) string {
	if slices.Contains(c.Origins, "*") {
		return "*"
	}
	said := x.in.Header.Get("Origin")
	for _, o := range c.Origins {
		if strings.EqualFold(o, said) {
			return said
		}
		scheme, rest, ok := strings.Cut(o, "://*.")
		if !ok {
			continue
		}
		s, host, _ := strings.Cut(said, "://")
		if label, domain, ok := strings.Cut(host, "."); ok && label != "" && strings.EqualFold(s, scheme) && strings.EqualFold(domain, rest) {
			return said
		}
	}
	return ""
}

// share sets the headers that tell scripts of other origins what they may see, in the place of the backend's.
func (x *exchange) share(c *table.CORS) (allowed bool) {
	h := x.w.Header()
	to := x.allowedOrigin(c)
	if to != "*" && !hasToken(h["Vary"], "Origin") {
		h.Add("Vary", "Origin")
	}
	if to == "" {
		return false
	}
	h.Set("Access-Control-Allow-Origin", to)
	if c.Credentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	if c.Expose != "" {
		h.Set("Access-Control-Expose-Headers", c.Expose)
	}
	return true
}

// preflight answers the question of a browser before it sends a request, and reports whether it did.
func (x *exchange) preflight(c *table.CORS) bool {
	if !x.share(c) || x.in.Method != http.MethodOptions {
		return false
	}
	h := x.w.Header()
	h.Set("Access-Control-Allow-Methods", c.Methods)
	h.Set("Access-Control-Allow-Headers", c.Headers)
	h.Set("Access-Control-Max-Age", strconv.Itoa(c.MaxAgeSeconds))
	x.answering.Store(true)
	x.status = http.StatusNoContent
	x.w.WriteHeader(http.StatusNoContent)
	return true
}
