// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
)

const (
	// maxTable bounds the memory that the table takes in a proxy, in bytes, as far as it can be estimated. A namespace has at most half.
	maxTable = 96 << 20
	// routeCost is what a route takes without its policy, stepCost a step of an expression, and textFactor a byte of a policy or a Secret.
	routeCost, stepCost, textFactor = 2 << 10, 160, 8
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
	return Finding{ReasonTooLarge, fmt.Sprintf("the Ingresses of the namespace %s take more memory in the proxies than one namespace may have,"+
		" or those of the cluster more than there is: %s. Fewer paths, names and networks in annotations make room", namespace, what)}
}
