// SPDX-License-Identifier: Apache-2.0

package ingress

// What the tests from outside compare with.
const PerSlice, UnusedFor, DefaultRest = perSlice, unusedFor, defaultRest

var SlicesOf, NewDefault = slicesOf, newDefault
