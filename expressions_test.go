// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// readers are the files that may read expressions of tenants, each with who is charged for them.
var readers = map[string]string{
	"ingress/compile/expressions.go":  "the Ingress' namespace, once for each text",
	"ingress/gateway/expressions.go":  "the route's namespace, for each host",
	"ingress/dataplane/expression.go": "the table has charged expressions only; a text is compiled once for all routes",
}

// TestExpressionsOfTenantsAreCharged: in the ingress no text that is not the program's own becomes an expression,
// except where it is charged to a namespace.
func TestExpressionsOfTenantsAreCharged(t *testing.T) {
	files, found := token.NewFileSet(), map[string]bool{}
	testenv.NoError(t, filepath.WalkDir("ingress", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f := testenv.Must(parser.ParseFile(files, path, nil, parser.SkipObjectResolution))(t)
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			of, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			name, _ := of.X.(*ast.Ident)
			switch {
			case name == nil:
			case name.Name == "expression" && of.Sel.Name == "Read":
				if found[path] = true; readers[path] == "" {
					t.Errorf("%s: expression.Read outside of %v, where expressions are charged", files.Position(n.Pos()), readers)
				}
			case name.Name == "regexp" && strings.Contains(of.Sel.Name, "Compile"):
				if _, literal := call.Args[0].(*ast.BasicLit); !literal && filepath.Dir(path) != "ingress/expression" {
					t.Errorf("%s: an expression that is not the program's own: package expression reads those of tenants", files.Position(n.Pos()))
				}
			}
			return true
		})
		return nil
	}))
	for path := range readers {
		testenv.True(t, found[path], "%s reads no expressions", path)
	}
}
