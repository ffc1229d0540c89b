// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const aReport = `[{"SpecReports": [
 {"ContainerHierarchyTexts": ["[sig-apps] Job"], "LeafNodeText": "should run", "LeafNodeType": "It", "State": "passed"},
 {"ContainerHierarchyTexts": ["[sig-apps] Job"], "LeafNodeText": "should fail", "LeafNodeType": "It", "State": "failed", "Failure": {"Message": "timed out\nin vain"}},
 {"ContainerHierarchyTexts": ["[sig-apps] Job"], "LeafNodeText": "of two nodes", "LeafNodeType": "It", "State": "skipped", "Failure": {"Message": "Requires at least 2 nodes"}},
 {"ContainerHierarchyTexts": ["[sig-apps] Job"], "LeafNodeText": "not asked for", "LeafNodeType": "It", "State": "skipped"},
 {"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"}
]}]`

func TestSummaryFailsOnFailedOrNoSpecs(t *testing.T) {
	read := func(text string) []spec {
		file := filepath.Join(t.TempDir(), "report.json")
		testenv.NoError(t, os.WriteFile(file, []byte(text), 0o644))
		return testenv.Must(readReport(file))(t)
	}
	var out strings.Builder
	testenv.False(t, summary(&out, read(aReport)), "a run with a failed spec counts as good")
	const want = `failed  [sig-apps] Job should fail
    timed out
    in vain
skipped  [sig-apps] Job of two nodes
    Requires at least 2 nodes
3 specs: 1 passed, 1 failed, 1 left themselves out
`
	testenv.Equal(t, out.String(), want, "the summary is")
	testenv.True(t, summary(&out, read(`[{"SpecReports": [{"LeafNodeText": "x", "LeafNodeType": "It", "State": "passed"}]}]`)), "a run of one good spec counts as bad")
	testenv.False(t, summary(&out, read(`[{"SpecReports": []}]`)), "a run without specs counts as good")
	if summary(&out, read(`[{"SpecReports": [{"LeafNodeText": "x", "LeafNodeType": "It", "State": "passed"}, {"LeafNodeType": "SynchronizedBeforeSuite", "State": "failed"}]}]`)) {
		t.Error("a suite that could not begin counts as good")
	}
}

func TestMergeTakesTheLaterFile(t *testing.T) {
	got := merge([]imagetar.File{{Path: "/a", Link: "1"}, {Path: "/b", Link: "1"}}, []imagetar.File{{Path: "/a", Link: "2"}, {Path: "/c", Link: "2"}})
	want := []imagetar.File{{Path: "/a", Link: "2"}, {Path: "/b", Link: "1"}, {Path: "/c", Link: "2"}}
	testenv.True(t, reflect.DeepEqual(got, want), "merged: %v, want %v", got, want)
}
