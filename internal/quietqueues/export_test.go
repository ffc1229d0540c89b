// SPDX-License-Identifier: Apache-2.0

package quietqueues

// None is the provider that queues have after Off.
var None = none
