// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/url"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/variable"
)

// maxExpanded limits the bytes of a request's parts that texts of its route repeat. A text may name the same variable
// often, and a response have many cookies in which it is put.
const maxExpanded = 4 * maxRequestHeader

// expand replaces the variables in a text by their values. It returns false when those of the request take more than
// maxExpanded.
func (r *request) expand(text variable.Text) (string, bool) {
	if len(text) == 1 && text[0].Name == "" {
		return text[0].Literal, true
	}
	var out strings.Builder
	for _, segment := range text {
		out.WriteString(segment.Literal)
		if segment.Name != "" {
			if r.expanded > maxExpanded {
				return "", false
			}
			value := r.value(segment.Name)
			if !r.repeat(value) {
				return "", false
			}
			out.WriteString(value)
		}
	}
	return out.String(), true
}

// repeat counts a part of the request that a text repeats. It returns false when they are more than maxExpanded.
func (r *request) repeat(part string) bool {
	r.expanded += len(part)
	return r.expanded <= maxExpanded
}

// requestURI returns the normalised path with the query.
func (r *request) requestURI() string {
	if r.in.URL.RawQuery == "" {
		return r.path.forward
	}
	return r.path.forward + "?" + r.in.URL.RawQuery
}

// value returns the value of an nginx variable. It returns "" for a value that the request does not have.
func (r *request) value(name string) string {
	switch name {
	case "host", "server_name":
		host, _ := hostName(r.in.Host)
		return host
	case "http_host", "best_http_host":
		return r.in.Host
	case "scheme", "pass_access_scheme":
		return r.scheme
	case "request_uri":
		return r.requestURI()
	case "escaped_request_uri":
		return url.QueryEscape(r.requestURI())
	case "uri", "document_uri":
		return r.path.forward
	case "args", "query_string":
		return r.in.URL.RawQuery
	case "is_args":
		if r.in.URL.RawQuery != "" {
			return "?"
		}
		return ""
	case "remote_addr", "binary_remote_addr":
		return r.client()
	case "request_method":
		return r.in.Method
	}
	if key, ok := strings.CutPrefix(name, "arg_"); ok {
		return queryArgument(r.in.URL.RawQuery, key)
	}
	if key, ok := strings.CutPrefix(name, "cookie_"); ok {
		if c, err := r.in.Cookie(key); err == nil {
			return c.Value
		}
		return ""
	}
	key := strings.ReplaceAll(strings.TrimPrefix(name, "http_"), "_", "-")
	return strings.Join(r.in.Header.Values(key), ", ")
}

// queryArgument returns the first value of a query's argument, as it was sent.
func queryArgument(query, key string) string {
	for pair := range strings.SplitSeq(query, "&") {
		if name, value, _ := strings.Cut(pair, "="); strings.EqualFold(name, key) {
			return value
		}
	}
	return ""
}
