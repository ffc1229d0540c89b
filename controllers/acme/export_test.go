// SPDX-License-Identifier: Apache-2.0

package acme

// What the tests from outside look for in Secrets and at the authority.
const (
	AccountAnnotation, ForAnnotation, OrderLabel = accountAnnotation, forAnnotation, orderLabel
	Most, URN                                    = maxOrders, urn
)

var IsOwned = isOwned
