// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"regexp"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// conditions are a route's conditions for a request, beside its path.
type conditions struct {
	method  string // empty for any
	headers []condition
	query   []condition
	steps   int // of all expressions, for each byte of a value
}

// condition is a compiled table.Condition.
type condition struct {
	name    string
	value   string
	pattern *regexp.Regexp // of the whole value; nil to compare value
	steps   int            // of the pattern, for each byte of a value
}

// compileConditions returns nil for a route without conditions beside its path.
func compileConditions(from *table.Route) (*conditions, error) {
	if from.Method == "" && len(from.Headers) == 0 && len(from.Query) == 0 {
		return nil, nil //nolint:nilnil // no conditions
	}
	out := &conditions{method: from.Method}
	for _, c := range from.Headers {
		one, err := compileCondition(c)
		if err != nil {
			return nil, err
		}
		one.name = textproto.CanonicalMIMEHeaderKey(one.name)
		out.steps += one.steps
		out.headers = append(out.headers, one)
	}
	for _, c := range from.Query {
		one, err := compileCondition(c)
		if err != nil {
			return nil, err
		}
		out.query = append(out.query, one)
		out.steps += one.steps
	}
	return out, nil
}

func compileCondition(from table.Condition) (condition, error) {
	out := condition{name: from.Name, value: from.Value}
	if from.Name == "" {
		return out, fmt.Errorf("a condition names no header and no parameter")
	}
	if from.Regex {
		var err error
		if out.pattern, out.steps, err = expression.Whole(from.Value); err != nil {
			return out, fmt.Errorf("the value for %s is no expression: %w", from.Name, err)
		}
	}
	return out, nil
}

// met reports whether the request meets the conditions. Values of a header that was sent several times are joined with
// commas before they are compared.
func (c *conditions) met(in *http.Request) bool {
	if c.method != "" && c.method != in.Method {
		return false
	}
	for i := range c.headers {
		values := in.Header[c.headers[i].name]
		if c.headers[i].name == "Host" {
			values = []string{in.Host}
		}
		if len(values) == 0 || !c.headers[i].matches(strings.Join(values, ",")) {
			return false
		}
	}
	for i := range c.query {
		value, ok := parameter(in.URL.RawQuery, c.query[i].name)
		if !ok || !c.query[i].matches(value) {
			return false
		}
	}
	return true
}

func (c *condition) matches(value string) bool {
	if c.pattern != nil {
		return c.pattern.MatchString(value)
	}
	return value == c.value
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
