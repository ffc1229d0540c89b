// SPDX-License-Identifier: Apache-2.0

package workqueuemetrics

// None is the provider that queues have after Disable.
var None = upstreamProvider

// Keep returns a function that puts the present provider back.
func Keep() func() {
	kept := provider
	return func() { provider = kept }
}
