// SPDX-License-Identifier: Apache-2.0

package proxy

// What the tests from outside have of the helpers that those inside need too.
var TestOptions, NewTestProxy, StartTestProxy = testOptions, newTestProxy, startTestProxy
