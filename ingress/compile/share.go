// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// maxTable bounds the memory that the table takes in a proxy, in bytes, as far as it can be estimated. A namespace
	// has at most half.
	maxTable = 96 << 20
	// routeCost is what a route takes without its policy, or a Secret without its text, stepCost a step of an
	// expression, textFactor a byte of a policy, and secretFactor one of a Secret.
	routeCost, stepCost, textFactor, secretFactor = 2 << 10, 160, 8, 4
	// maxFindings bounds the findings of one object.
	maxFindings = 20
)

// room takes a part of the table for a namespace; false says that there is none left. Older Ingresses come first.
func (c *compiler) room(namespace string, cost int) bool {
	if c.spent[namespace]+cost > maxTable/2 || c.spentInAll+cost > maxTable {
		return false
	}
	c.spent[namespace] += cost
	c.spentInAll += cost
	return true
}

// secretRoom takes the part of the table that a Secret's section has, once for all Ingresses that name it. It is called
// in the order of their age.
func (c *compiler) secretRoom(namespace, key string, size int) bool {
	if _, known := c.secrets[key]; !known {
		c.secrets[key] = c.room(namespace, routeCost+secretFactor*size)
	}
	return c.secrets[key]
}

// certificate adds the section of a Secret as a certificate, where it is one; false says that there is no room for it.
func (c *compiler) certificate(secret types.NamespacedName) bool {
	section := c.s.Memory.certificateOf(c.s.Secrets[secret]).section
	key := table.CertificateKey(secret.Namespace, secret.Name)
	if section == nil {
		return true
	}
	if !c.secretRoom(secret.Namespace, key, len(section)) {
		return false
	}
	c.r.Sections[key] = section
	return true
}

// cost is what one route of an Ingress takes, with its policy.
func (o *options) cost(path string) int { return routeCost + textFactor*(len(path)+o.size) }

// costOf is what the routes of an Ingress take.
func costOf(ing *networkingv1.Ingress, o *options) int {
	cost := o.cost("")
	for _, rule := range ing.Spec.Rules {
		cost += o.cost(rule.Host)
		if rule.HTTP == nil {
			continue
		}
		for i := range rule.HTTP.Paths {
			cost += o.cost(rule.HTTP.Paths[i].Path)
		}
	}
	return cost
}

// tooLarge is the finding of what is left out because of room.
func tooLarge(namespace, what string) Finding {
	return Finding{ReasonTooLarge, fmt.Sprintf("the Ingresses of the namespace %s take more memory in the proxies than one namespace"+
		" may have, or those of the cluster more than there is: %s."+
		" Fewer or smaller paths, Secrets, and names and networks in annotations make room", namespace, what)}
}
