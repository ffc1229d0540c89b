// SPDX-License-Identifier: Apache-2.0

package quietqueues

// None is the provider that queues have after Off.
var None = none

// Keep returns a function that puts the present provider back.
func Keep() func() {
	kept := provider
	return func() { provider = kept }
}
