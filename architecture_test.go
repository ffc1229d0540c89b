// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var (
	pathNamed = regexp.MustCompile(`[\w-]+(?:/[\w-]+)*(?:\.\w+)?`)
	// paragraphEnd is where a paragraph, a row or a list item ends.
	paragraphEnd = regexp.MustCompile(`\n(?:\n|\||#|-|\d+\.)`)
	// namesIn is a file or folder, and names that it declares.
	namesIn      = regexp.MustCompile("`([\\w-]+(?:/[\\w-]+)+|[\\w/-]+\\.go)`(?:, | \\()((?:`\\w+`(?:, | and )?)+)")
	qualified    = regexp.MustCompile("`(\\w+)\\.([A-Z]\\w*)`")
	testNamed    = regexp.MustCompile("`(Test[^`]*)`") // with subtests: TestX/row
	scriptNamed  = regexp.MustCompile(`[\w-]+\.txt`)
	testDeclared = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
)

// TestArchitectureNamesWhatExists: files, folders and Go names in docs/architecture.md are those of the tree. A file
// without a folder is the root's, or in a folder that the same paragraph or row has named before.
func TestArchitectureNamesWhatExists(t *testing.T) {
	paths, declares := map[string]bool{}, map[string]bool{} // "raftstore/store.go"; "store.go Store", "raftstore Store"
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (path == "build" || len(path) > 1 && path[0] == '.') {
			return filepath.SkipDir
		}
		paths[path] = true
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err == nil {
			for _, id := range declared(f) {
				for _, in := range []string{path, filepath.Base(path), filepath.Dir(path), f.Name.Name} {
					declares[in+" "+id.Name] = true
				}
			}
		}
		return err
	})
	page, readErr := os.ReadFile("docs/architecture.md")
	testenv.Require(t, err == nil && readErr == nil, "%v %v", err, readErr)
	ours, _, _ := strings.Cut(string(page), "\n## What of other modules' we set") // from there on upstream's names are mixed in
	for _, text := range paragraphEnd.Split(ours, -1) {
		folders := []string{"."}
		for _, p := range pathNamed.FindAllString(text, -1) {
			dir, name := filepath.Split(p)
			file := filepath.Ext(p) == ".go"
			switch top, _, below := strings.Cut(p, "/"); {
			case filepath.Ext(p) != "" && !file:
			case below && paths[top] && !paths[p],
				file && !below && !slices.ContainsFunc(folders, func(in string) bool { return paths[filepath.Join(in, name)] }):
				t.Errorf("docs/architecture.md: there is no %s", p)
			case file:
				folders = append(folders, dir)
			case paths[p]:
				folders = append(folders, p)
			}
		}
	}
	for _, m := range append(namesIn.FindAllStringSubmatch(ours, -1), qualified.FindAllStringSubmatch(ours, -1)...) {
		for name := range strings.FieldsFuncSeq(m[2], func(r rune) bool { return strings.ContainsRune("`, ", r) }) {
			if name != "and" && !declares[m[1]+" "+name] && !paths[name] {
				t.Errorf("docs/architecture.md: %s declares no %s", m[1], name)
			}
		}
	}
}

// TestThreatModelNamesTestsThatExist: each test that docs/threat-model.md names is declared in some folder, whose test
// files have each subtest as a string or as a script, and each script that it names is in some testdata.
func TestThreatModelNamesTestsThatExist(t *testing.T) {
	folders, scripts := map[string]string{}, map[string]bool{} // the text of a folder's test files; "slow-hub.txt"
	testenv.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err == nil && d.IsDir() && (path == "build" || len(path) > 1 && path[0] == '.'):
			return filepath.SkipDir
		case err == nil && strings.HasSuffix(path, "_test.go"):
			folders[filepath.Dir(path)] += string(testenv.Must(os.ReadFile(path))(t))
		case strings.Contains(path, "testdata"):
			scripts[filepath.Base(path)] = true
		}
		return err
	}))
	tests := map[string]string{} // the text of all folders that declare the test
	for _, text := range folders {
		for _, m := range testDeclared.FindAllStringSubmatch(text, -1) {
			tests[m[1]] += text
		}
	}
	page := string(testenv.Must(os.ReadFile("docs/threat-model.md"))(t))
	for _, m := range testNamed.FindAllStringSubmatch(page, -1) {
		names := strings.Split(m[1], "/")
		testenv.True(t, tests[names[0]] != "", "docs/threat-model.md: there is no %s", names[0])
		for _, row := range names[1:] {
			testenv.True(t, strings.Contains(tests[names[0]], `"`+row+`"`) || scripts[row+".txt"], "docs/threat-model.md: there is no %s", m[1])
		}
	}
	for _, name := range scriptNamed.FindAllString(page, -1) {
		testenv.True(t, scripts[name], "docs/threat-model.md: there is no script %s", name)
	}
}
