// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// adrLines is how long a page of docs/adr may be, and adrSections are what each page has.
const adrLines = 60

var adrSections = []string{"Status.", "Target and lines of code.", "Problem.", "Decision.", "Rejected."}

// adrNumber finds ADRs by their number, adrFile those by the name of their page.
var (
	adrNumber = regexp.MustCompile(`\b(?:ADRs?(?:\s|//|\[)+|adr/)([0-9]{4})`)
	adrFile   = regexp.MustCompile(`\b(?:adr/|\]\()([0-9]{4}-[a-z0-9-]+\.md)`)
)

func TestADRsHaveOneForm(t *testing.T) {
	for _, path := range testenv.Must(filepath.Glob("docs/adr/*"))(t) {
		page := string(testenv.Must(os.ReadFile(path))(t))
		testenv.True(t, strings.HasPrefix(page, "# "+filepath.Base(path)[:4]+": "), "%s does not begin with its number", path)
		for _, section := range adrSections {
			testenv.Equal(t, strings.Count("\n"+page, "\n**"+section+"**"), 1, "%s: how many paragraphs begin with **%s**:", path, section)
		}
		lines := strings.Count(page, "\n")
		testenv.True(t, lines <= adrLines, "%s has %d lines, at most %d", path, lines, adrLines)
	}
}

func TestNamedADRsExist(t *testing.T) {
	var files, numbers []string
	for _, path := range testenv.Must(filepath.Glob("docs/adr/*.md"))(t) {
		files, numbers = append(files, filepath.Base(path)), append(numbers, filepath.Base(path)[:4])
	}
	testenv.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch ext := filepath.Ext(path); {
		case err == nil && d.IsDir() && path != "." && (d.Name()[0] == '.' || d.Name() == "build" || d.Name() == "node_modules"):
			return filepath.SkipDir
		case err != nil || d.IsDir() || ext != ".md" && ext != ".go":
			return err
		}
		text := string(testenv.Must(os.ReadFile(path))(t))
		for by, have := range map[*regexp.Regexp][]string{adrNumber: numbers, adrFile: files} {
			for _, found := range by.FindAllStringSubmatch(text, -1) {
				testenv.True(t, slices.Contains(have, found[1]), "%s names the ADR %s, which docs/adr does not have", path, found[1])
			}
		}
		return nil
	}))
}
