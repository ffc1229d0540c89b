// SPDX-License-Identifier: Apache-2.0

package uml

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestPartsOfATestAreFoundInItsOutput(t *testing.T) {
	output, over := judge([]byte("=== RUN   TestCases/ipvs/one\r\n    x_test.go:1: --- PASS: TestCases/ipvs/quoted (1.00s)\r\n" +
		"--- PASS: TestCases (9.00s)\r\n    --- PASS: TestCases/ipvs (9.00s)\r\n" +
		"        --- PASS: TestCases/ipvs/one_(kubernetes_1) (4.00s)\r\n            --- PASS: TestCases/ipvs/one_(kubernetes_1)/IPv4 (1.00s)\r\n" +
		"        --- SKIP: TestCases/ipvs/two (0.00s)\r\nPASS\r\n\r\n" + verdict + "0\r\n"))
	testenv.Equal(t, over, "0", "it ended with")
	want := []part{{"", false}, {"one_(kubernetes_1)", false}, {"one_(kubernetes_1)/IPv4", false}, {"two", true}}
	testenv.EqualSlices(t, partsOf("TestCases/ipvs", output), want, "")
	if got := partsOf("TestCases/ip", output); len(got) > 0 {
		t.Errorf("%v are parts of another test", got)
	}
}
