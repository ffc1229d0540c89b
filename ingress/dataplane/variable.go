// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/variable"
)

// maxExpanded limits the bytes of a request's parts that texts of its route repeat. A text may name the same variable
// often, and a response have many cookies in which it is put.
const maxExpanded = 4 * maxRequestHeader

// expand replaces the variables in a text by their values. It returns false when those of the request take more than
// maxExpanded.
func (x *exchange) expand(text variable.Text) (string, bool) {
	if len(text) == 1 && text[0].Name == "" {
		return text[0].Literal, true
	}
	var out strings.Builder
	for _, segment := range text {
		out.WriteString(segment.Literal)
		if segment.Name != "" {
			if x.expanded > maxExpanded {
				return "", false
			}
			value := x.value(segment.Name)
			if !x.repeat(value) {
				return "", false
			}
			out.WriteString(value)
		}
	}
	return out.String(), true
}

// repeat counts a part of the request that a text repeats. It returns false when they are more than maxExpanded.
func (x *exchange) repeat(part string) bool {
	x.expanded += len(part)
	return x.expanded <= maxExpanded
}

// tooLong answers a request whose parts would be repeated too often.
func (x *exchange) tooLong() {
	x.answer(http.StatusRequestURITooLong, "the request is too long for the texts of its route, which repeat parts of it")
}

// requestURI returns the normalised path with the query.
func (x *exchange) requestURI() string {
	if x.in.URL.RawQuery == "" {
		return x.path.forward
	}
	return x.path.forward + "?" + x.in.URL.RawQuery
}

// value returns the value of an nginx variable. It returns "" for a value that the request does not have.
func (x *exchange) value(name string) string {
	switch name {
	case "host", "server_name":
		host, _ := hostName(x.in.Host)
		return host
	case "http_host", "best_http_host":
		return x.in.Host
	case "scheme", "pass_access_scheme":
		return x.scheme
	case "request_uri":
		return x.requestURI()
	case "escaped_request_uri":
		return url.QueryEscape(x.requestURI())
	case "uri", "document_uri":
		return x.path.forward
	case "args", "query_string":
		return x.in.URL.RawQuery
	case "is_args":
		if x.in.URL.RawQuery != "" {
			return "?"
		}
		return ""
	case "remote_addr", "binary_remote_addr":
		return x.client()
	case "request_method":
		return x.in.Method
	}
	if key, ok := strings.CutPrefix(name, "arg_"); ok {
		return argument(x.in.URL.RawQuery, key)
	}
	if key, ok := strings.CutPrefix(name, "cookie_"); ok {
		if c, err := x.in.Cookie(key); err == nil {
			return c.Value
		}
		return ""
	}
	key := strings.ReplaceAll(strings.TrimPrefix(name, "http_"), "_", "-")
	return strings.Join(x.in.Header.Values(key), ", ")
}

// argument returns the first value of a query's argument, as it was sent.
func argument(query, key string) string {
	for pair := range strings.SplitSeq(query, "&") {
		if name, value, _ := strings.Cut(pair, "="); strings.EqualFold(name, key) {
			return value
		}
	}
	return ""
}
