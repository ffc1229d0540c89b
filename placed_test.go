// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"errors"
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

// TestArchitecturePlacesEveryPackage: who meets a package finds it on docs/architecture.md, or on the store's page.
func TestArchitecturePlacesEveryPackage(t *testing.T) {
	page, err := os.ReadFile("docs/architecture.md")
	store, storeErr := os.ReadFile("raftstore/DESIGN.md")
	placed := map[string]bool{".": true}
	for _, path := range regexp.MustCompile(`[\w-]+(?:/[\w-]+)*(?:\.go\b)?`).FindAllString(string(page)+string(store), -1) {
		if placed[path] = true; strings.HasSuffix(path, ".go") {
			placed[filepath.Dir(path)] = true
		}
	}
	err = errors.Join(err, storeErr, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch dir := filepath.Dir(path); {
		case err != nil:
			return err
		case d.IsDir() && (path == "build" || path == "test" || d.Name() == "testdata" || len(path) > 1 && path[0] == '.'):
			return filepath.SkipDir
		case filepath.Ext(path) == ".go" && !strings.HasSuffix(path, "_test.go") && !placed[dir]:
			t.Errorf("docs/architecture.md does not say what %s is for", dir)
			placed[dir] = true // once is enough
		}
		return nil
	}))
	testenv.Require(t, err == nil, "%v", err)
}

// TestGoroutinesAreInPackageDocs: the doc of a package that starts goroutines says which, and how long each of them
// lives.
func TestGoroutinesAreInPackageDocs(t *testing.T) {
	starts, says := map[string]string{}, map[string]bool{} // a folder's first place that starts one; whether its doc speaks of them
	testenv.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path == "build" || path == "test" || d.Name() == "testdata" || len(path) > 1 && path[0] == '.'):
			return filepath.SkipDir
		case filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		dir, files := filepath.Dir(path), token.NewFileSet()
		f := testenv.Must(parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution))(t)
		says[dir] = says[dir] || strings.Contains(f.Doc.Text(), "oroutine")
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if ok {
				method, isMethod := call.Fun.(*ast.SelectorExpr)
				ok = isMethod && method.Sel.Name == "Go"
			}
			if _, statement := n.(*ast.GoStmt); (ok || statement) && starts[dir] == "" {
				starts[dir] = files.Position(n.Pos()).String()
			}
			return true
		})
		return nil
	}))
	testenv.Require(t, len(starts) > 50, "only %d packages start goroutines", len(starts))
	for dir, at := range starts {
		testenv.True(t, says[dir], "%s starts a goroutine, and the doc of its package names none (\"Its goroutines: …\")", at)
	}
}
