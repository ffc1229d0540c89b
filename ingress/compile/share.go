// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// maxTable limits the estimated memory of the table in a proxy, in bytes. A namespace may have half of it.
	maxTable = 96 << 20
	// routeCost, stepCost, textFactor and secretFactor are estimates, in bytes, of the memory for: a route without its
	// policy or a Secret without its text; a step of an expression; a byte of a policy; a byte of a Secret.
	// nameCost is that of a host or a Secret in spec.tls without its text, in a proxy or a server.
	routeCost, stepCost, textFactor, secretFactor, nameCost = 2 << 10, 160, 8, 4, 512
	// maxTLS limits the hosts and Secrets in the spec.tls of one Ingress.
	maxTLS = 5000
	// maxFindings limits the findings of one object.
	maxFindings = 20
)

// reserve reserves memory of the table for a namespace. It returns false when the memory does not suffice. Older
// Ingresses come first.
func (c *compiler) reserve(namespace string, cost int) bool {
	if c.usedMemory[namespace]+cost > maxTable/2 || c.totalMemory+cost > maxTable {
		return false
	}
	c.usedMemory[namespace] += cost
	c.totalMemory += cost
	return true
}

// reserveSecret reserves the memory of a Secret's section, once for all Ingresses that name the Secret. It is called in
// the order of the Ingresses' age.
func (c *compiler) reserveSecret(namespace, key string, size int) bool {
	if _, known := c.secrets[key]; !known {
		c.secrets[key] = c.reserve(namespace, routeCost+secretFactor*size)
	}
	return c.secrets[key]
}

// certificate adds the section of a Secret that is a valid certificate. It returns false if the section does not fit
// into maxTable.
func (c *compiler) certificate(secret types.NamespacedName) bool {
	section := c.s.Memory.certificateOf(c.s.Secrets[secret]).section
	key := table.CertificateKey(secret.Namespace, secret.Name)
	if section == nil {
		return true
	}
	if !c.reserveSecret(secret.Namespace, key, len(section)) {
		return false
	}
	c.r.Sections[key] = section
	return true
}

// routeCost returns the cost of one route of an Ingress, with its policy and without its expressions.
func (o *options) routeCost(path string) int { return routeCost + textFactor*(len(path)+o.size) }

// TLS returns the beginning of a spec.tls that has maxTLS hosts and Secrets at most. What comes after it is not used,
// and need not be kept in memory.
func TLS(spec []networkingv1.IngressTLS) []networkingv1.IngressTLS {
	names := 0
	for i := range spec {
		if names += 1 + len(spec[i].Hosts); names > maxTLS {
			return slices.Clone(spec[:i]) // so that the rest can be freed
		}
	}
	return spec
}

// costOf returns the cost of the routes of an Ingress, with those that slash and www add, and of the names in its
// spec.tls.
func costOf(ing *networkingv1.Ingress, o *options) int {
	cost := o.routeCost("")
	for _, t := range TLS(ing.Spec.TLS) {
		cost += nameCost + textFactor*len(t.SecretName)
		for _, host := range t.Hosts {
			cost += nameCost + textFactor*len(host)
		}
	}
	for _, rule := range ing.Spec.Rules {
		cost += o.routeCost(rule.Host)
		if o.www {
			cost += routeCost + textFactor*len(rule.Host)
		}
		if rule.HTTP == nil {
			continue
		}
		for i := range rule.HTTP.Paths {
			path := rule.HTTP.Paths[i].Path
			if cost += o.routeCost(path); o.nginx && strings.HasSuffix(path, "/") {
				cost += routeCost + textFactor*len(path)
			}
		}
	}
	return cost
}

// youngestObject returns the youngest Ingress of a namespace that takes memory.
func (c *compiler) youngestObject(namespace string) (out table.Object) {
	for _, a := range c.ingresses {
		if a.ing.Namespace == namespace {
			out = table.Object{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "Ingress", Name: a.ing.Name,
				UID: string(a.ing.UID)}
		}
	}
	return out
}

// tooLarge returns the finding about something that was left out for its size.
func tooLarge(namespace, what string) Finding {
	return Finding{ReasonTooLarge, "", fmt.Sprintf("the Ingresses of the namespace %s take more memory in the proxies than one namespace"+
		" may have, or those of the cluster more than there is: %s."+
		" Fewer or smaller paths, Secrets, and names and networks in annotations make room", namespace, what)}
}
