// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

// mayHaveHost reports whether an Ingress may have a host. With Rules.HostOwner, a host belongs to the namespace of the
// oldest Ingress that has it, or a wildcard for it, in a rule. mayHaveHost must be called in the order of the
// Ingresses' age. The empty name is for requests to no other host.
func (c *compiler) mayHaveHost(ing *networkingv1.Ingress, name string) bool {
	for _, of := range []string{name, wildcard(name)} {
		if owner := c.ownerOf[of]; c.s.Rules.HostOwner && owner != nil && owner.Namespace != ing.Namespace && (of != "" || name == "") {
			c.find(ing, Finding{ReasonHostTaken, fieldRules, fmt.Sprintf(
				"the host %q belongs to the namespace %s, whose Ingress %s is the oldest that names %q: the rule is left out "+
					"(--ingress-host-owner=namespace)",
				name, owner.Namespace, owner.Name, of)})
			return false
		}
	}
	c.ownerOf[name] = cmp.Or(c.ownerOf[name], ing)
	return true
}

// certified returns the namespace that may have a certificate for a host: the one that has the host in a rule, else the
// first that named it, by named.
func (c *compiler) certified(name string, named map[string]string) string {
	if owner := c.ownerOf[name]; owner != nil {
		return owner.Namespace
	}
	if owner := c.ownerOf[wildcard(name)]; c.s.Rules.HostOwner && owner != nil && wildcard(name) != "" {
		return owner.Namespace
	}
	return named[name]
}

// wildcard returns the wildcard that covers a host; "" for none.
func wildcard(name string) string {
	if _, rest, ok := strings.Cut(name, "."); ok && !strings.HasPrefix(name, "*.") {
		return "*." + rest
	}
	return ""
}

// final reports whether requests that no route of a host matches must not be tried at the site's default host, since
// that belongs to another namespace.
func (c *compiler) final(h *host) bool {
	owner := c.ownerOf[""]
	return c.s.Rules.HostOwner && owner != nil && owner.Namespace != h.namespace
}
