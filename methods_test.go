// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// maxMethods are types that once did everything, each with how many methods it may have. What one of them would do
// beyond that belongs to one of its parts.
var maxMethods = map[string]struct {
	folder, name string
	most         int
}{
	// raftstore/DESIGN.md names their parts.
	"the store":              {"raftstore", "Store", 25},
	"the store among others": {"raftstore", "clustered", 30},
	// docs/adr/0142 names its rooms.
	"the server": {"server", "Server", 38},
}

func TestTypesHaveFewMethods(t *testing.T) {
	for what, of := range maxMethods {
		paths := testenv.Must(filepath.Glob(filepath.Join(of.folder, "*.go")))(t)
		var methods []string
		found := false
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			f := testenv.Must(parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution))(t)
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if receiver(n) == of.name {
						methods = append(methods, n.Name.Name)
					}
					return false
				case *ast.TypeSpec:
					if n.Name.Name != of.name {
						return true
					}
					found = true
					testenv.True(t, !embeds(n.Type), "%s: %s.%s embeds a type, whose methods it has too", path, of.folder, of.name)
				}
				return true
			})
		}
		testenv.True(t, found, "%s: there is no type %s in %s", what, of.name, of.folder)
		if len(methods) > of.most {
			t.Errorf("%s: %s.%s has %d methods, at most %d: %s", what, of.folder, of.name, len(methods), of.most, strings.Join(methods, ", "))
		}
	}
}

// receiver returns the name of the type whose method a function is, or "".
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	of := f.Recv.List[0].Type
	if pointer, ok := of.(*ast.StarExpr); ok {
		of = pointer.X
	}
	if id, ok := of.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// embeds says whether a type is a struct with an embedded field.
func embeds(of ast.Expr) bool {
	s, ok := of.(*ast.StructType)
	if !ok {
		return false
	}
	for _, field := range s.Fields.List {
		if len(field.Names) == 0 {
			return true
		}
	}
	return false
}
