// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/ingress/expression"
)

// charge reads an expression, and adds its steps to the match's, by which bound charges the route to its namespace.
func (m *match) charge(text string, form expression.Form) error {
	return expression.Read(text, form, func(e expression.Expression) bool {
		m.steps += e.Steps
		return true
	})
}

// check returns an error for text that is no expression by itself. Such text could close the groups around it.
func check(text string) error {
	return expression.Read(text, expression.Anywhere, func(expression.Expression) bool { return true })
}

// sharedSteps counts, by Gateway and namespace, the steps of expressions that requests for all hosts of a listener may
// be compared with.
type sharedSteps map[sharedKey]int

type sharedKey struct {
	gateway   *gateway
	namespace string
}

// reserve takes the steps of a route at the Gateways of other namespaces where it names no host of its own. It returns
// false, and takes none, when a namespace then has more than expression.MaxShared at one of them: routes of other
// namespaces may serve the same requests.
func (s sharedSteps) reserve(r *route) bool {
	steps := r.steps()
	if steps == 0 {
		return true
	}
	var at []sharedKey
	for _, a := range r.attachments() {
		key := sharedKey{a.listener.gateway, r.object.GetNamespace()}
		if !a.shared() || slices.Contains(at, key) {
			continue
		}
		if s[key]+steps > expression.MaxShared {
			return false
		}
		at = append(at, key)
	}
	for _, key := range at {
		s[key] += steps
	}
	return true
}

// shared reports whether the attachment is to another namespace's listener of several hosts, and has all of them.
func (a *attachment) shared() bool {
	l := a.listener
	return l.owner.namespace != a.route.object.GetNamespace() && (l.host == "" || strings.HasPrefix(l.host, "*.")) &&
		slices.Contains(a.hosts, l.host)
}

func (r *route) steps() (sum int) {
	for _, rule := range r.rules {
		for _, m := range rule.matches {
			sum += m.steps
		}
	}
	return sum
}

// tooCostly is the problem of a route for which sharedSteps has no room.
func tooCostly(object metav1.Object) problem {
	return problem{"TooLarge", fmt.Sprintf("requests for every host of the listener may be compared with the route, and the expressions of "+
		"routes of the namespace %s without hostnames have more than %d steps there: hostnames, or fewer and smaller expressions, make room",
		object.GetNamespace(), expression.MaxShared)}
}
