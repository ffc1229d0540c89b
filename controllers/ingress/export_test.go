// SPDX-License-Identifier: Apache-2.0

package ingress

// What the tests from outside compare with.
const PerSlice, UnusedFor, DefaultRest, YieldAfter, Retry = perSlice, unusedFor, renewBefore, yieldAfter, retryDelay

var SlicesOf, NewDefault = slicesOf, newDefault

// OwnLabels are those of objects that the controller made.
func OwnLabels() map[string]string { return map[string]string{managedBy: managerName} }
