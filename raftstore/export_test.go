// SPDX-License-Identifier: Apache-2.0

package raftstore

// What the tests from outside have of the helpers that those inside need too.
var (
	Faces, OpenStore, Dial, TestContext = faces, openStore, dial, testContext
	MustPut, Collect, Noise, TestLog    = mustPut, collect, noise, testLog
)
