// SPDX-License-Identifier: Apache-2.0

package servicelb

// What the tests from outside have of the helpers that those inside need too.
var (
	Key, IngressText, Flagged, PlanAndWrite   = serviceKey, ingressText, flagged, planAndWrite
	RunController, AwaitAddresses, AwaitWatch = run, awaitAddresses, awaitWatch
)
