// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// allowedOrigin returns the response's allowed origin for scripts of the request's origin. It returns "" for an origin
// that the route does not allow.
func (w *response) allowedOrigin(c *table.CORS) string {
	origin := w.request.in.Header.Get("Origin")
	if slices.Contains(c.Origins, "*") {
		if c.Gateway && c.Credentials {
			return origin // browsers take no "*" then
		}
		return "*"
	}
	for _, o := range c.Origins {
		if strings.EqualFold(o, origin) {
			return origin
		}
		scheme, rest, ok := strings.Cut(o, "://*.")
		if !ok {
			continue
		}
		s, host, _ := strings.Cut(origin, "://")
		for label, domain, ok := strings.Cut(host, "."); ok && label != "" && strings.EqualFold(s, scheme); label, domain,
			ok = strings.Cut(domain, ".") {
			if strings.EqualFold(domain, rest) {
				return origin
			}
			if !c.Gateway {
				break
			}
		}
	}
	return ""
}

// share sets the CORS headers of a response, in place of the backend's. It reports whether the request's origin is
// allowed.
func (w *response) share(c *table.CORS) (allowed bool) {
	h := w.writer.Header()
	to := w.allowedOrigin(c)
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

// preflight answers a preflight request, which a browser sends before the request itself. It reports whether it did.
func (w *response) preflight(c *table.CORS) bool {
	allowed := w.share(c)
	if w.request.in.Method != http.MethodOptions {
		return false
	}
	h := w.writer.Header()
	switch method := w.request.in.Header.Get("Access-Control-Request-Method"); {
	case !c.Gateway && !allowed, c.Gateway && (method == "" || w.request.in.Header.Get("Origin") == ""):
		return false
	case !allowed: // without the headers that would allow the request itself
	default:
		for name, value := range map[string]string{
			"Access-Control-Allow-Methods": allowedList(c, c.Methods, method),
			"Access-Control-Allow-Headers": allowedList(c, c.Headers, w.request.in.Header.Get("Access-Control-Request-Headers")),
			"Access-Control-Max-Age":       strconv.Itoa(c.MaxAgeSeconds),
		} {
			if value != "" || !c.Gateway {
				h.Set(name, value)
			}
		}
	}
	w.answering.Store(true)
	w.status = http.StatusNoContent
	w.writer.WriteHeader(http.StatusNoContent)
	return true
}

// allowedList returns the list of allowed methods or headers for a response. Where browsers do not accept "*", it
// returns those that the client asked for.
func allowedList(c *table.CORS, list, asked string) string {
	if c.Gateway && c.Credentials && list == "*" {
		return asked
	}
	return list
}
