// SPDX-License-Identifier: Apache-2.0

package agent

// PullAuth is exported for the tests of the runtime.
var PullAuth = pullAuth
