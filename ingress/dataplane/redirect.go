// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// pathChange is a compiled table.PathChange.
type pathChange struct {
	prefix bool
	value  string // in forward form; for a prefix without the slash at its end
}

// compilePathChange returns nil if there is no change.
func compilePathChange(from *table.PathChange) (*pathChange, error) {
	if from == nil {
		return nil, nil //nolint:nilnil // no change
	}
	out := &pathChange{prefix: from.Prefix}
	if from.Value == "" {
		if !from.Prefix {
			out.value = "/"
		}
		return out, nil
	}
	path, err := normalise(from.Value)
	if err != nil || !strings.HasPrefix(from.Value, "/") {
		return nil, fmt.Errorf("%q is not a path that begins with a slash", from.Value)
	}
	if out.value = path.forward; out.prefix {
		out.value = strings.TrimSuffix(out.value, "/")
	}
	return out, nil
}

// replacesPrefix reports whether the policy replaces the prefix of requests or redirects.
func (p *policy) replacesPrefix() bool {
	return p.path != nil && p.path.prefix || p.redirectPath != nil && p.redirectPath.prefix
}

// apply returns the changed path of a request that matched r, in forward form.
func (c *pathChange) apply(path cleanPath, r *route) string {
	if !c.prefix {
		return c.value
	}
	if out := c.value + path.forward[forwardIndex(path.forward, len(r.path)):]; out != "" {
		return out
	}
	return "/"
}

// forwardIndex returns the index in a path's forward form (cleanPath) of a byte with the given index in its match form.
func forwardIndex(forward string, match int) int {
	at := 0
	for ; match > 0 && at < len(forward); match-- {
		// An escape in forward is one byte of the match form, except the escapes of the slash and the percent sign.
		// These are equal in both forms.
		if forward[at] == '%' && !strings.HasPrefix(forward[at:], "%2F") && !strings.HasPrefix(forward[at:], "%25") {
			at += 2
		}
		at++
	}
	return min(at, len(forward))
}

// location returns the target of a redirect: the request's own URL with the changes of to and path.
func (r *request) location(to *table.Redirect, path *pathChange, from *route) string {
	scheme, host, port := to.Scheme, to.Host, ""
	scheme = cmp.Or(scheme, r.scheme)
	if host == "" {
		host, _ = hostName(r.in.Host)
	}
	if to.Port != 0 && !(scheme == "http" && to.Port == 80) && !(scheme == "https" && to.Port == 443) {
		port = ":" + strconv.Itoa(to.Port)
	}
	target := r.requestURI()
	if path != nil {
		target = path.apply(r.path, from)
		if r.in.URL.RawQuery != "" {
			target += "?" + r.in.URL.RawQuery
		}
	}
	return scheme + "://" + host + port + target
}
