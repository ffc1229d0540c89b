// SPDX-License-Identifier: Apache-2.0

package raftstore

// What the tests from outside have of the helpers that those inside need too.
var (
	Faces, Everywhere, OpenStore, Dial = faces, everywhere, openStore, dial
	MustPut, Collect                   = mustPut, collect
	TestContext, TestLog, Noise        = testContext, testLog, noise
)
