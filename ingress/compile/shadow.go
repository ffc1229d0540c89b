// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"

	"github.com/coracle-k8s/coracle/ingress/expression"
)

const (
	// maxShadow limits the steps of findShadowed for all hosts, to some 60 ms of a processor. Compiling an expression
	// counts as comparing it with a path of compileLength bytes.
	maxShadow, compileLength = 1 << 20, 64
)

// findShadowed adds a finding to each route of another class than nginx whose own path an expression of the class nginx
// matches and comes before. ingress-nginx orders expressions by the length of their text, so that "/.*" comes before
// "/" and "/(a|b)" before "/a". The routes are in order. Findings beyond maxShadow are left out; tables have none.
func (c *compiler) findShadowed(name string, h *host) {
	if c.s.Service == nil || !h.regex {
		return
	}
	type pattern struct {
		expression.Pattern
		of *route
	}
	last := len(h.routes) - 1 // the last route that may lose requests
	for last >= 0 && !h.routes[last].plain() {
		last--
	}
	var before []pattern
	for _, r := range h.routes[:last+1] {
		switch {
		case r.plain():
			for i := range before {
				p := &before[i]
				if !c.mayCompare(p.Steps * len(r.Path)) {
					return
				}
				if p.MatchString(r.Path) {
					c.find(r.ing, Finding{ReasonPathTaken, fieldRules, fmt.Sprintf(
						"the expression %.100q of %s, which is of the class nginx, takes requests for %.100q at the host %q: it comes before that path "+
							"since its text is not shorter. Another host, or the class coracle for both, mends it",
						p.of.written, p.of.options.object, r.Path, name)})
					break
				}
			}
		case r.options.nginx && !r.fallback && !r.challenge() && r.Refused == "" && c.mayCompare(r.steps*compileLength):
			if p, err := c.s.Memory.expressionOf(r.written, r.formOf()).Compile(); err == nil {
				before = append(before, pattern{p, r})
			}
		}
	}
}

// plain reports whether a route's path is compared as the specification of Ingress says.
func (r *route) plain() bool {
	return !r.options.nginx && !r.fallback && !r.challenge() && !r.ownRegex()
}

// mayCompare takes steps from maxShadow. It returns false if there are not enough; then there are none any more.
func (c *compiler) mayCompare(steps int) bool {
	c.shadow += steps + 1
	if c.shadow > maxShadow {
		c.shadow = maxShadow
		return false
	}
	return true
}
