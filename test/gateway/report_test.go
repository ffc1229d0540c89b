// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const aReport = `
apiVersion: gateway.networking.k8s.io/v1
kind: ConformanceReport
profiles:
- name: GATEWAY-TLS
  core: {result: success, statistics: {Failed: 0, Passed: 19, Skipped: 0}}
- name: GATEWAY-HTTP
  core: {result: failure, failedTests: [HTTPRouteWeight], skippedTests: [HTTPRouteCORS], statistics: {Failed: 1, Passed: 34, Skipped: 1}}
  extended: {result: success, statistics: {Failed: 0, Passed: 50, Skipped: 0}, supportedFeatures: [GatewayPort8080]}
`

func TestSummaryFailsOnFailedOrSkippedTests(t *testing.T) {
	read := func(text string) []profile {
		file := filepath.Join(t.TempDir(), "report.yaml")
		testenv.NoError(t, os.WriteFile(file, []byte(text), 0o644))
		return testenv.Must(readReport(file))(t)
	}
	var out strings.Builder
	testenv.False(t, summary(&out, read(aReport), []string{"HTTPRouteWeight/even"}), "a run with a failed test counts as good")
	const want = `failed  HTTPRouteWeight/even
GATEWAY-HTTP  core       34 passed, 1 failed, 1 skipped
    failed   HTTPRouteWeight
    skipped  HTTPRouteCORS
GATEWAY-HTTP  extended   50 passed, 0 failed, 0 skipped
GATEWAY-GRPC  no test ran
GATEWAY-TLS   core       19 passed, 0 failed, 0 skipped
GATEWAY-TLS   extended    0 passed, 0 failed, 0 skipped
`
	if out.String() != want {
		t.Errorf("the summary is\n%swant\n%s", &out, want)
	}
	whole := strings.ReplaceAll(strings.ReplaceAll(aReport, "Failed: 1", "Failed: 0"), ", failedTests: [HTTPRouteWeight]", "")
	testenv.False(t, summary(&strings.Builder{}, read(whole), nil), "a run with a skipped test counts as good")
	testenv.True(t, summary(&strings.Builder{}, read(strings.ReplaceAll(whole, "Skipped: 1", "Skipped: 0")), nil), "a run in which all tests passed counts as bad")
	testenv.False(t, summary(&strings.Builder{}, read("profiles: []"), nil), "a run without a test counts as good")
}

func TestFailuresAreExtracted(t *testing.T) {
	got := failures(`
        http.go:280: 
            	Error Trace:	/module/http.go:280
            	            				/module/http.go:100
            	Error:      	Received unexpected error:
            	            	context deadline exceeded
            	Test:       	TestConformance/HTTPRouteWeight/even_weights
            	Messages:   	error waiting for weights
--- FAIL: TestConformance (9.00s)
    --- PASS: TestConformance/HTTPRouteSimple (1.00s)
    --- FAIL: TestConformance/HTTPRouteWeight (2.00s)
        --- FAIL: TestConformance/HTTPRouteWeight/even_weights (1.00s)
    --- FAIL: TestConformance/TLSRoute (2.00s)
    --- SKIP: TestConformance/UDPRoute (0.00s)
`)
	want := []string{"HTTPRouteWeight/even_weights\n    error waiting for weights: Received unexpected error: context deadline exceeded", "TLSRoute"}
	testenv.EqualSlices(t, got, want, "failures are")
	got = failures("    \tError:      \tno Gateways\n    \tTest:       \tTestConformance\n--- FAIL: TestConformance (9.00s)\n")
	testenv.EqualSlices(t, got, []string{"the suite\n    no Gateways"}, "failures outside of the tests are")
}

func TestImageNamesAreReadFromManifests(t *testing.T) {
	folder := t.TempDir()
	manifest := "image: registry.example/echo-basic:v2\n  - args: [image]\n    image: registry.example/other:v1\n"
	testenv.NoError(t, os.WriteFile(filepath.Join(folder, "a.yaml"), []byte(manifest), 0o644))
	testenv.NoError(t, os.WriteFile(filepath.Join(folder, "a.go"), []byte("image: no\n"), 0o644))
	names, err := imageNames(folder)
	if want := []string{"registry.example/echo-basic:v2", "registry.example/other:v1"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("the images are %q, %v, want %q", names, err, want)
	}
}
