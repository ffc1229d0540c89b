// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// Expressions are the annotations whose value is an expression, which may match anywhere in a text.
var Expressions = []string{"auth-tls-match-cn", "canary-by-header-pattern"}

// expression reads an annotation of Expressions. charged reserves the memory for each Ingress.
func (o *options) expression(name string) string {
	text := o.annotations[name]
	if text == "" {
		return ""
	}
	if err := expression.Read(text, expression.Anywhere, func(e expression.Expression) bool {
		o.expressions = append(o.expressions, e)
		return true
	}); err != nil {
		o.refuseAnnotation(name, fmt.Sprintf("which is no expression of RE2's that can be served (%.100v)", err))
	}
	return text
}

type expressionKey struct {
	text string
	form expression.Form
}

type readExpression struct {
	expression.Expression
	err error
}

// expressionOf returns the expression of a path, from the cache if it is in it.
func (m *Memory) expressionOf(text string, form expression.Form) readExpression {
	key := expressionKey{text, form}
	e, ok := m.expressions[key]
	if ok {
		return e
	}
	if e, ok = m.lastExpressions[key]; !ok {
		e.err = expression.Read(text, form, func(read expression.Expression) bool { // steps charges it
			e.Expression = read
			return true
		})
	}
	m.expressions[key] = e
	return e
}

// steps returns the steps of the expression of a path, and charges it to a namespace.
func (c *compiler) steps(namespace, text string, form expression.Form) (int, error) {
	switch e := c.s.Memory.expressionOf(text, form); {
	case e.err != nil:
		return 0, e.err
	case !c.charged(namespace, e.Expression):
		return 0, expression.ErrBudget
	default:
		return e.Steps, nil
	}
}

// chargedKey identifies an expression of a namespace.
type chargedKey struct{ namespace, source string }

// charged reserves the memory of an expression for a namespace, once for all its routes, since a proxy compiles a text
// once. It returns false when the memory does not suffice. It is called in the order of the Ingresses' age.
func (c *compiler) charged(namespace string, e expression.Expression) bool {
	if e.Steps == 0 {
		return true
	}
	key := chargedKey{namespace, e.Source()}
	if _, known := c.expressions[key]; !known {
		c.expressions[key] = c.reserve(namespace, routeCost+stepCost*e.Steps+textFactor*len(key.source))
	}
	return c.expressions[key]
}

// isExpression reports whether the settings of a route's own Ingress make its path an expression.
func (r *route) isExpression() bool {
	return r.options.nginx && !r.fallback && (r.options.useRegex || r.rewrites()) || r.ownRegex()
}

// formOf returns how a path that is an expression is compared: by the class nginx without regard to case.
func (r *route) formOf() expression.Form {
	if r.options.nginx {
		return expression.PrefixFold
	}
	return expression.Prefix
}

// makeExpression makes a route's path an expression. One that cannot be served is closed.
func (c *compiler) makeExpression(r *route, kind table.PathKind) {
	r.Kind, r.Path = kind, r.written
	var err error
	r.steps, err = c.steps(r.ing.Namespace, r.written, r.formOf())
	switch {
	case errors.Is(err, expression.ErrBudget):
		c.closeExpression(r, ReasonTooLarge, err.Error())
	case err != nil:
		c.closeExpression(r, ReasonUnsupported, fmt.Sprintf(
			"it is no expression of RE2's, which has no lookaheads and no back references (%.200v)", err))
	}
}

// closeExpression closes all paths that a route's expression may match. Other routes, which may restrict access less,
// must not get their requests.
func (c *compiler) closeExpression(r *route, reason, why string) {
	prefix := plainPrefix(r.written)
	if strings.Contains(r.written, "|") {
		prefix = "/"
	}
	r.Path, r.Backends, r.steps = prefix, nil, 0
	r.Refused = fmt.Sprintf("the path %.100q cannot be served, since %s: all paths that begin with %s answer 503", r.written, why, prefix)
	c.find(r.ing, Finding{reason, fieldRules, r.Refused})
}

// boundShared closes routes of the default host whose expressions take more of a request's time than one namespace may
// take, the youngest first: requests for all hosts may be compared with them. The namespace with the oldest route is
// not bounded.
func (c *compiler) boundShared(h *host) {
	byAge := slices.SortedStableFunc(slices.Values(h.routes), func(a, b *route) int {
		switch {
		case older(a.ing, b.ing):
			return -1
		case older(b.ing, a.ing):
			return 1
		}
		return 0
	})
	taken := map[string]int{}
	for _, r := range byAge {
		namespace := r.ing.Namespace
		if taken[namespace] += r.steps; namespace == byAge[0].ing.Namespace || taken[namespace] <= expression.MaxShared {
			continue
		}
		taken[namespace] -= r.steps
		c.closeExpression(r, ReasonTooLarge, fmt.Sprintf("requests for every host may be compared with it, and the expressions of the "+
			"namespace %s at rules without a host have more than %d steps (a host in the rule mends it)", namespace, expression.MaxShared))
	}
}

// costlyPath is the length of a path, in bytes, that every host should serve.
const costlyPath = 1 << 10

// findCostly adds a finding where the expressions of a host take so long that the proxy refuses paths of costlyPath or
// less.
func (c *compiler) findCostly(name string, h *host) {
	total := 0
	var first *route // whose expression such a path is not compared with
	for _, r := range h.routes {
		if total += r.steps; first == nil && total*costlyPath > expression.MaxRequest {
			first = r
		}
	}
	if first != nil {
		c.find(first.ing, Finding{ReasonCostly, fieldRules, fmt.Sprintf("the expressions of the host %q take so long to be compared that requests "+
			"with a path of more than %d bytes may be answered with 503: fewer or smaller expressions mend it", name,
			expression.MaxRequest/total)})
	}
}
