// SPDX-License-Identifier: Apache-2.0

package term

// Start is for the tests from outside.
var Start = newTerm
