// SPDX-License-Identifier: Apache-2.0

package snapshots

// What the tests from outside have of the helpers that those inside need too.
var (
	NewMachine, NewTarget, MustKey = newMachine, target, mustKey
	Names, Start, Required         = names, start, required
)
