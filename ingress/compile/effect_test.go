// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestEachReasonHasAnEffect reads the constants from the package's source.
func TestEachReasonHasAnEffect(t *testing.T) {
	file := testenv.Must(parser.ParseFile(token.NewFileSet(), "compile.go", nil, 0))(t)
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(v.Names[0].Name, "Reason") {
			return true
		}
		found++
		reason := testenv.Must(strconv.Unquote(v.Values[0].(*ast.BasicLit).Value))(t)
		testenv.True(t, Finding{Reason: reason}.Effect() != "", "%s (%s) has no effect in effect.go", v.Names[0].Name, reason)
		return true
	})
	testenv.True(t, found >= len(effects), "compile.go has %d reasons, and %d have an effect", found, len(effects))
}
