// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"math/rand/v2"
	"net/http"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// canary is a compiled table.Canary.
type canary struct {
	*table.Canary
	name    string // of the backend
	backend backend
	pattern *pattern // nil for none
}

func (c compiler) compileCanary(from *table.Canary) (*canary, error) {
	out := &canary{Canary: from, name: from.Backend.Key()}
	var err error
	if from.WeightTotal < 1 {
		return nil, fmt.Errorf("the total weight of a canary is %d", from.WeightTotal)
	}
	if from.HeaderPattern != "" {
		if out.pattern, err = c.patternOf(from.HeaderPattern, expression.Anywhere); err != nil {
			return nil, fmt.Errorf("reading the pattern of a canary: %w", err)
		}
	}
	out.backend, err = c.compileBackend(from.Backend)
	return out, err
}

// selects reports whether the request goes to the canary. The header decides, or the cookie if there is no header, or
// chance if there is neither. A header that is too long for the request's remaining steps selects no canary.
func (c *canary) selects(in *http.Request, from *steps) bool {
	if values := in.Header.Values(c.Header); c.Header != "" && len(values) > 0 {
		switch said := values[0]; {
		case c.HeaderValue != "":
			if said == c.HeaderValue {
				return true
			}
		case c.pattern != nil:
			v := c.pattern.compare(said, from)
			from.releaseQueue()
			switch v {
			case matches:
				return true
			case undecided:
				return false
			}
		case said == "always":
			return true
		case said == "never":
			return false
		}
	}
	if c.Cookie != "" {
		if said, err := in.Cookie(c.Cookie); err == nil && said.Value == "always" {
			return true
		} else if err == nil && said.Value == "never" {
			return false
		}
	}
	return c.Weight > 0 && rand.N(c.WeightTotal) < c.Weight
}
