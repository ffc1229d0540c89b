// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/coracle-k8s/coracle/ingress/expression"
)

// pattern is a compiled expression. All routes with the same text share it.
type pattern struct {
	expression.Pattern
	shared
}

type patternKey struct {
	text string
	form expression.Form
}

// patternOf returns the pattern of a text. The caller holds mu.
func (o *objects) patternOf(text string, form expression.Form) (*pattern, error) {
	key := patternKey{text, form}
	if have := o.patterns[key]; have != nil {
		return have, nil
	}
	var e expression.Expression
	err := expression.Read(text, form, func(read expression.Expression) bool { // the server has charged it to a namespace
		e = read
		return true
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // callers say which expression it is
	}
	out := &pattern{}
	if out.Pattern, err = e.Compile(); err != nil {
		return nil, err //nolint:wrapcheck // as above
	}
	o.patterns[key] = out
	return out, nil
}

// marked records, for a sweep, that the pattern is in use. It may be nil.
func (p *pattern) marked(sweep uint64) {
	if p != nil {
		p.lastSweep = sweep
	}
}

// verdict is the result of comparing a request with a route.
type verdict int

const (
	differs verdict = iota
	matches
	// undecided is the verdict about a route whose expressions take more than the rest of a request's steps. The
	// request may match the route, so no other route may serve it.
	undecided
)

// compare compares a text, and takes the steps for it.
func (p *pattern) compare(text string, from *steps) verdict {
	switch {
	case !from.spend(p.Steps * len(text)):
		return undecided
	case p.MatchString(text):
		return matches
	}
	return differs
}
