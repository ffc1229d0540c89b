// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestEssentialPartsAreInTheTable: each call of supervise.Group.Essential has a row in the table of what ends the
// process, which names its file and a piece of its source, and each such name in the table has one call.
func TestEssentialPartsAreInTheTable(t *testing.T) {
	page := testenv.Must(os.ReadFile(table))(t)
	_, section, found := strings.Cut(string(page), "\n## What ends the process\n")
	section, _, _ = strings.Cut(section, "\n## ")
	testenv.True(t, found, "%s has no such section any more", table)
	named := map[[2]string]int{} // how many calls a file and a piece of source have, by the table
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			continue
		}
		for _, m := range regexp.MustCompile("`([\\w/]+\\.go)`, essential((?:,? `[^`]+`)+)").FindAllStringSubmatch(cells[2], -1) {
			for _, piece := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(m[2], -1) {
				named[[2]string{m[1], piece[1]}] = 0
			}
		}
	}
	for file, calls := range essentialCalls(t) {
		for _, call := range calls {
			var rows []string
			for of := range named {
				if of[0] == file && strings.Contains(call, of[1]) {
					named[of]++
					rows = append(rows, of[1])
				}
			}
			testenv.True(t, len(rows) == 1, "%s calls\n%s\nand the table %q in %s names it by %q: want one name", file, call,
				"What ends the process", table, rows)
		}
	}
	for of, calls := range named {
		testenv.Equal(t, calls, 1, "%s has %q as essential: calls of Essential with it in %s", table, of[1], of[0])
	}
}

// essentialCalls lists the source of each call of Essential by its file, without other such calls in it.
func essentialCalls(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	testenv.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path == "test" || path == "build" || path == "internal/supervise" || len(path) > 1 && path[0] == '.'):
			return filepath.SkipDir
		case filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(source), ".Essential") {
			return err
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, path, source, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		var calls []*ast.CallExpr
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if of, ok := call.Fun.(*ast.SelectorExpr); ok && of.Sel.Name == "Essential" {
					calls = append(calls, call)
				}
			}
			return true
		})
		testenv.Equal(t, len(calls), strings.Count(string(source), ".Essential"), "%s: a use of Essential is no call: calls", path)
		at := func(p token.Pos) int { return files.Position(p).Offset }
		for i := len(calls) - 1; i >= 0; i-- { // the inner ones are the later ones
			begin, end := at(calls[i].Pos()), at(calls[i].End())
			out[path] = append(out[path], strings.TrimSpace(string(source[begin:end])))
			copy(source[begin:end], strings.Repeat(" ", end-begin))
		}
		return nil
	}))
	return out
}
