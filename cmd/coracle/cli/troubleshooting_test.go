// SPDX-License-Identifier: Apache-2.0

package cli_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// joined is where a long message goes on in the next line of its source.
var joined = regexp.MustCompile(`" ?\+\s*"`)

// TestTroubleshootingQuotesRealMessages keeps the headings of docs/troubleshooting.md, which users search for by what
// they saw, in step with the messages in the sources.
func TestTroubleshootingQuotesRealMessages(t *testing.T) {
	const root = "../../.."
	var sources strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // another test's folder that went away meanwhile
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "test" || d.Name() == "build") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") || path == root+"/install.sh" {
			text, err := os.ReadFile(path)
			if err != nil {
				return nil // likewise
			}
			sources.Write(joined.ReplaceAll(text, nil))
		}
		return nil
	})
	testenv.NoError(t, err)
	doc := testenv.Must(os.ReadFile(root + "/docs/troubleshooting.md"))(t)
	quotes := 0
	for line := range strings.Lines(string(doc)) {
		quote, ok := strings.CutPrefix(strings.TrimSpace(line), "> ")
		if !ok {
			continue
		}
		quotes++
		for _, part := range strings.Split(quote, "…") {
			if part = strings.Trim(part, " "); len(part) > 3 && !strings.Contains(sources.String(), part) {
				t.Errorf("no message has the words %q", part)
			}
		}
	}
	testenv.True(t, quotes >= 20, "only %d messages are quoted", quotes)
}
