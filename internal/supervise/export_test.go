// SPDX-License-Identifier: Apache-2.0

package supervise

// The bounds of the wait for the tests from outside.
const First, Longest = shortestWait, longestWait
