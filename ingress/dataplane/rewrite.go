// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/http"
	"strings"
)

// rewrite replaces the path of the request. It returns false when it has answered the request instead.
func (x *exchange) rewrite(r *route) bool {
	var groups []int
	if r.expression != nil {
		from := x.newSteps()
		from.host = x.steps.host
		defer from.releaseQueue()
		if !from.spend(r.expression.Steps * len(x.path.match)) {
			x.answer(http.StatusServiceUnavailable, "too many requests with paths as long wait for their rewrite")
			return false
		}
		groups = r.expression.Groups(x.path.match)
	}
	target, query, hasQuery := strings.Cut(r.policy.Rewrite, "?")
	text, ok := x.substitute(target, x.path.forward, groups, nil)
	if !ok {
		x.tooLong()
		return false
	}
	path, err := normalise("/" + text)
	if err != nil {
		x.answer(http.StatusBadRequest, err.Error())
		return false
	}
	before := x.path.forward
	x.path.forward = path.forward
	if !hasQuery {
		return true
	}
	// As in nginx, the target's arguments come first. The request's arguments are left out when the target ends with a
	// question mark.
	query, drop := strings.CutSuffix(query, "?")
	if query, ok = x.substitute(query, before, groups, inQuery); !ok {
		x.tooLong()
		return false
	}
	if old := x.in.URL.RawQuery; old != "" && !drop && r.policy.Rewrite[len(r.policy.Rewrite)-1] != '?' {
		if query != "" {
			query += "&"
		}
		query += old
	}
	x.in.URL.RawQuery, x.in.URL.ForceQuery = query, false
	return true
}

// inQuery escapes what separates the arguments of a query, and what stands for a space there.
var inQuery = strings.NewReplacer("&", "%26", "+", "%2B")

// substitute puts the groups of an expression into a target. groups are indices in the match form of a path. The text
// that is put in comes from the forward form, so that its escapes stay; escapes, unless it is nil, changes it. A group
// that does not exist is empty. It returns false when the groups take more than maxExpanded.
func (r *request) substitute(target, forward string, groups []int, escapes *strings.Replacer) (string, bool) {
	var out strings.Builder
	for i := 0; i < len(target); i++ {
		if target[i] != '$' || i+1 == len(target) || target[i+1] < '1' || target[i+1] > '9' {
			out.WriteByte(target[i])
			continue
		}
		i++
		n := 2 * int(target[i]-'0')
		if n+1 >= len(groups) || groups[n] < 0 {
			continue
		}
		text := forward[forwardIndex(forward, groups[n]):forwardIndex(forward, groups[n+1])]
		if escapes != nil {
			text = escapes.Replace(text)
		}
		if !r.repeat(text) {
			return "", false
		}
		out.WriteString(text)
	}
	return out.String(), true
}
