// SPDX-License-Identifier: Apache-2.0

package server

// Bounds for the tests from outside.
const (
	Identify, Most, RefusalLogs = identifyTimeout, maxUnauthenticated, refusalLogs
	PerSource, SourceBurst      = perSource, sourceBurst
)
