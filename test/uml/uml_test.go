// SPDX-License-Identifier: Apache-2.0

package uml

import "testing"

func TestKernelComplaintsAreFound(t *testing.T) {
	const sampleOutput = `=== RUN   TestX/first
    x_test.go:12: not within 2m0s
=== RUN   TestX/second
    network.go:181: the pod network is ready
--- FAIL: TestX (120.00s)
    --- FAIL: TestX/first (119.00s)
    --- PASS: TestX/second (1.00s)
FAIL
`
	const want = `    x_test.go:12: not within 2m0s
--- FAIL: TestX (120.00s)
    --- FAIL: TestX/first (119.00s)
`
	if got := complaints(sampleOutput); got != want {
		t.Errorf("complaints are\n%swant\n%s", got, want)
	}
}
