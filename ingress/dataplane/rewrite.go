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
		groups = r.expression.FindStringSubmatchIndex(x.path.match)
	}
	target, query, hasQuery := strings.Cut(r.policy.Rewrite, "?")
	path, err := normalise("/" + substitute(target, x.path.match, groups, true))
	if err != nil {
		x.answer(http.StatusBadRequest, err.Error())
		return false
	}
	x.path.forward = path.forward
	if !hasQuery {
		return true
	}
	// As in nginx, the target's arguments come first. The request's arguments are left out when the target ends with a
	// question mark.
	query, drop := strings.CutSuffix(query, "?")
	query = substitute(query, x.path.match, groups, false)
	if old := x.in.URL.RawQuery; old != "" && !drop && r.policy.Rewrite[len(r.policy.Rewrite)-1] != '?' {
		if query != "" {
			query += "&"
		}
		query += old
	}
	x.in.URL.RawQuery, x.in.URL.ForceQuery = query, false
	return true
}

// substitute puts the groups of an expression into a target, escaped for a path or for a query. A group that does not
// exist is empty.
func substitute(target, matched string, groups []int, path bool) string {
	var out strings.Builder
	for i := 0; i < len(target); i++ {
		if target[i] != '$' || i+1 == len(target) || target[i+1] < '1' || target[i+1] > '9' {
			out.WriteByte(target[i])
			continue
		}
		i++
		n := 2 * int(target[i]-'0')
		if n+1 < len(groups) && groups[n] >= 0 {
			escape(&out, matched[groups[n]:groups[n+1]], path)
		}
	}
	return out.String()
}

// escape writes a piece of a path in match form, escaped for a target. In match form a percent sign comes only before
// 2F and 25, and stays.
func escape(out *strings.Builder, text string, path bool) {
	const hexDigits = "0123456789ABCDEF"
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c == '%' || isPathByte(c) && (path || c != '&' && c != '+') {
			out.WriteByte(c)
			continue
		}
		out.WriteByte('%')
		out.WriteByte(hexDigits[c>>4])
		out.WriteByte(hexDigits[c&15])
	}
}
