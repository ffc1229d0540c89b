// SPDX-License-Identifier: Apache-2.0

package gateway

import gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

// tlsRules reads the rules of a TLSRoute. The first rule gets all connections.
func (c *compiler) tlsRules(r *route, rules []gatewayv1.TLSRouteRule) {
	var refs []gatewayv1.BackendRef
	if len(rules) > 0 {
		refs = rules[0].BackendRefs
	}
	r.passthrough = true
	r.streams.passed, r.resolved = c.backends(r, refs, nil)
	r.passthrough = false
	r.streams.terminated, _ = c.backends(r, refs, nil)
}
