// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// conditions are a route's conditions for a request, beside its path.
type conditions struct {
	method   string // empty for any
	plain    []condition
	patterns []condition
}

// condition is a compiled table.Condition.
type condition struct {
	name    string
	query   bool // of a parameter of the query; otherwise of a header
	value   string
	pattern *pattern // of the whole value; nil to compare value
}

// compileConditions returns nil for a route without conditions beside its path.
func (c compiler) compileConditions(from *table.Route) (*conditions, error) {
	if from.Method == "" && len(from.Headers) == 0 && len(from.Query) == 0 {
		return nil, nil //nolint:nilnil // no conditions
	}
	out := &conditions{method: from.Method}
	for i, one := range slices.Concat(from.Headers, from.Query) {
		one, err := c.compileCondition(one)
		if err != nil {
			return nil, err
		}
		if one.query = i >= len(from.Headers); !one.query {
			one.name = textproto.CanonicalMIMEHeaderKey(one.name)
		}
		if one.pattern != nil {
			out.patterns = append(out.patterns, one)
		} else {
			out.plain = append(out.plain, one)
		}
	}
	return out, nil
}

func (c compiler) compileCondition(from table.Condition) (condition, error) {
	out := condition{name: from.Name, value: from.Value}
	if from.Name == "" {
		return out, fmt.Errorf("a condition names no header and no parameter")
	}
	if from.Regex {
		var err error
		if out.pattern, err = c.patternOf(from.Value, expression.Whole); err != nil {
			return out, fmt.Errorf("the value for %s is no expression: %w", from.Name, err)
		}
	}
	return out, nil
}

// plainMet reports whether a request meets the conditions without expressions.
func (c *conditions) plainMet(in *http.Request) bool {
	if c.method != "" && c.method != in.Method {
		return false
	}
	for i := range c.plain {
		if value, ok := c.plain[i].valueIn(in); !ok || value != c.plain[i].value {
			return false
		}
	}
	return true
}

// patternsMet compares a request with the conditions that have expressions.
func (c *conditions) patternsMet(in *http.Request, from *steps) verdict {
	out := matches
	for i := range c.patterns {
		value, ok := c.patterns[i].valueIn(in)
		if !ok {
			return differs
		}
		switch c.patterns[i].pattern.compare(value, from) {
		case differs:
			return differs
		case undecided: // another condition may decide
			out = undecided
		}
	}
	return out
}

// valueIn returns the value of the condition's header or parameter, and whether there is one. Values of a header that
// was sent several times are joined with commas.
func (c *condition) valueIn(in *http.Request) (string, bool) {
	if c.query {
		return parameter(in.URL.RawQuery, c.name)
	}
	values := in.Header[c.name]
	if c.name == "Host" {
		values = []string{in.Host}
	}
	return strings.Join(values, ","), len(values) > 0
}

// parameter returns the first value of a query's parameter with its escapes decoded. A value that cannot be decoded is
// returned as it was sent.
func parameter(query, name string) (string, bool) {
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if decoded, err := url.QueryUnescape(key); err == nil {
			key = decoded
		}
		if key != name || pair == "" {
			continue
		}
		if decoded, err := url.QueryUnescape(value); err == nil {
			value = decoded
		}
		return value, true
	}
	return "", false
}

// markInUse records, for a sweep, that the patterns are in use. c may be nil.
func (c *conditions) markInUse(sweep uint64) {
	if c == nil {
		return
	}
	for i := range c.patterns {
		c.patterns[i].pattern.marked(sweep)
	}
}
