// SPDX-License-Identifier: Apache-2.0

package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/evanw/esbuild/pkg/api"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPureFilesOfThePagesAreRight runs the tests of console/web/test, which are of what needs no browser, by the test
// runner of node.
func TestPureFilesOfThePagesAreRight(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		testenv.Missing(t, testenv.Node, "%v", err)
	}
	if _, err := os.Stat("../web/node_modules"); err != nil {
		testenv.Missing(t, testenv.Node, "the packages of the pages are not there, which make build fetches: %v", err)
	}
	files := testenv.Must(filepath.Glob("../web/test/*.test.ts"))(t)
	testenv.Require(t, len(files) != 0, "console/web/test has no tests")
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".test.ts"), func(t *testing.T) {
			built := api.Build(api.BuildOptions{
				EntryPoints: []string{file}, Bundle: true, Format: api.FormatESModule, Platform: api.PlatformNode, Target: api.ES2022,
				JSX: api.JSXAutomatic, JSXImportSource: "preact",
			})
			testenv.Require(t, len(built.Errors) == 0, "%v", built.Errors)
			script := filepath.Join(t.TempDir(), "test.mjs")
			testenv.NoError(t, os.WriteFile(script, built.OutputFiles[0].Contents, 0o600))
			cmd := exec.CommandContext(t.Context(), node, "--test-reporter=tap", script)
			cmd.Env = append(os.Environ(), "TZ=UTC")
			out, err := cmd.CombinedOutput()
			testenv.NoError(t, err, "%s", out)
			testenv.True(t, strings.Contains(string(out), "# pass") && !strings.Contains(string(out), "# pass 0\n"),
				"no test has run:\n%s", out)
		})
	}
}
