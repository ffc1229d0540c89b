// SPDX-License-Identifier: Apache-2.0

package balancer

// What the tests from outside have of the helpers that those inside need too, and limits.
var (
	Start, StartUsual, StartStill, TwoServers, TwoServersOf = start, startUsual, startStill, twoServers, twoServersOf
	ConnectTo, WantAnswer, FindsAtLast                      = connectTo, wantAnswer, findsAtLast
)

const Most, HoldPause, DialTimeout = maxServers, holdPause, dialTimeout
