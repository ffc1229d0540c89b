// SPDX-License-Identifier: Apache-2.0

package logging

// Limits for the tests from outside.
const MaxText, MaxHeld = maxText, maxHeld
