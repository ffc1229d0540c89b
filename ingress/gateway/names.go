// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"iter"
	"regexp"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// dnsName matches the names of hosts, except "", which means all hosts. A wildcard as the first label stands for one
// label or more.
var dnsName = regexp.MustCompile(`^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// hostName returns a name in the form of the table. It returns false for invalid names, which CRDs of another version
// may permit.
func hostName(h gatewayv1.Hostname) (string, bool) {
	name := strings.ToLower(string(h))
	return name, len(name) <= 253 && dnsName.MatchString(name)
}

// covers reports whether all hosts of name are hosts of pattern.
func covers(pattern, name string) bool {
	if pattern == "" || pattern == name {
		return true
	}
	suffix, ok := strings.CutPrefix(pattern, "*")
	return ok && len(name) > len(suffix) && strings.HasSuffix(name, suffix)
}

// intersect returns the name of the hosts that two names have in common.
func intersect(a, b string) (string, bool) {
	switch {
	case covers(a, b):
		return b, true
	case covers(b, a):
		return a, true
	}
	return "", false
}

// coveringNames returns the names that cover a name, the most specific first: itself, then wildcards, and then "".
func coveringNames(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if name == "" {
			yield("")
			return
		}
		if !yield(name) {
			return
		}
		for rest := strings.TrimPrefix(name, "*."); ; {
			_, after, ok := strings.Cut(rest, ".")
			if !ok {
				break
			}
			if rest = after; !yield("*." + rest) {
				return
			}
		}
		yield("")
	}
}
