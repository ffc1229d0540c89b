// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// modification is a compiled table.Headers.
type modification struct {
	remove   []string
	set, add []headerValue
	host     string // of a request; empty to leave it
}

// headerValue is a header in canonical form. All requests share the slice values. Its capacity is its length, so that
// appending to it makes a copy.
type headerValue struct {
	name   string
	values []string
}

// compileHeaders reads changes of the headers of requests, or of responses. It returns nil if there are none.
func compileHeaders(from *table.Headers, request bool) (*modification, error) {
	if from == nil {
		return nil, nil //nolint:nilnil // no changes
	}
	out := &modification{}
	for _, name := range from.Remove {
		name, err := changeableHeader(name)
		if err != nil {
			return nil, err
		}
		if name == "Host" {
			return nil, fmt.Errorf("the header Host can be set, but not removed")
		}
		out.remove = append(out.remove, name)
	}
	for _, list := range []struct {
		from []table.Header
		to   *[]headerValue
	}{{from.Set, &out.set}, {from.Add, &out.add}} {
		for _, h := range list.from {
			name, err := changeableHeader(h.Name)
			switch {
			case err != nil:
				return nil, err
			case !isHeaderValue(h.Value):
				return nil, fmt.Errorf("the value of the header %s holds a line break or another control character", name)
			case name == "Host" && (!request || list.to == &out.add):
				return nil, fmt.Errorf("the header Host can only be set, and only for backends")
			case name == "Host":
				if _, ok := hostName(h.Value); !ok || h.Value == "" {
					return nil, fmt.Errorf("%q is no host", h.Value)
				}
				out.host = h.Value
			default:
				*list.to = append(*list.to, headerValue{name, slices.Clip([]string{h.Value})})
			}
		}
	}
	return out, nil
}

// changeableHeader returns a header's name in canonical form. It returns an error for a header that a route may not
// change.
func changeableHeader(name string) (string, error) {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !isToken(r) }) {
		return "", fmt.Errorf("%q is not the name of a header", name)
	}
	name = textproto.CanonicalMIMEHeaderKey(name)
	if hopByHop(name) || name == "Content-Length" {
		return "", fmt.Errorf("the header %s is the proxy's own and cannot be changed", name)
	}
	return name, nil
}

// isToken reports whether the name of a header may hold a character (RFC 9110, 5.6.2).
func isToken(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r > 0 && strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// isHeaderValue reports whether text may be sent as the value of a header (RFC 9110, 5.5).
func isHeaderValue(text string) bool {
	for i := 0; i < len(text); i++ {
		if c := text[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// apply changes headers. m may be nil.
func (m *modification) apply(h http.Header) {
	if m == nil {
		return
	}
	for _, name := range m.remove {
		delete(h, name)
	}
	for _, v := range m.set {
		h[v.name] = v.values
	}
	for _, v := range m.add {
		if have := h[v.name]; len(have) > 0 {
			h[v.name] = append(slices.Clip(have), v.values...)
		} else {
			h[v.name] = v.values
		}
	}
}
