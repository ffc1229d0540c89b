// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const table = "docs/architecture.md"

// TestUpstreamTable keeps the table of what this project sets in other modules in step with the sources: every linkname
// directive and every assignment to an exported variable has a row that names it and its file, and every such row has
// one. Calls that change something for the whole process cannot be distinguished from others; their rows are kept by
// hand.
func TestUpstreamTable(t *testing.T) {
	text := testenv.Must(os.ReadFile(table))(t)
	_, section, found := strings.Cut(string(text), "## What of other modules' we set")
	section, _, _ = strings.Cut(section, "\n## ")
	testenv.Require(t, found, "%s has no such section any more", table)
	rows := regexp.MustCompile(`(?m)^\|.*\| (?:`+"`go:linkname`"+`|assignment) \|.*$`).FindAllString(section, -1)
	named := make([]int, len(rows)) // how many names of a row were found in the sources
	settings := settingsOfOthers(t)
	testenv.True(t, len(settings) >= 8, "only %d are found in the sources: the search is broken", len(settings))
	for _, s := range settings {
		i := slices.IndexFunc(rows, func(row string) bool {
			return strings.Contains(row, "`"+s.name+"`") && strings.Contains(row, "| "+s.how+" |") && strings.Contains(row, "`"+s.file+"`")
		})
		if i < 0 {
			t.Errorf("%s sets %s by %s: the table in %s does not say so", s.file, s.name, s.how, table)
			continue
		}
		named[i]++
	}
	names := regexp.MustCompile("`[a-z0-9]+\\.[A-Za-z0-9]+`")
	for i, row := range rows {
		of, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		if want := len(names.FindAllString(of, -1)); named[i] < want {
			t.Errorf("%d of the %d names in this row are not set anywhere:\n%s", want-named[i], want, row)
		}
	}
}

// setting is a place where we set a variable of another module.
type setting struct {
	file, name string
	how        string // as in the table
}

// settingsOfOthers reads every source file that is neither a test nor of a test's program. Each pair of file and name
// is listed once.
func settingsOfOthers(t *testing.T) []setting {
	t.Helper()
	var out []setting
	testenv.NoError(t, filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (p == "test" || p == "build" || strings.HasPrefix(d.Name(), ".") && p != ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		for _, s := range append(linknames(f), assignments(f)...) {
			if s.file = filepath.ToSlash(p); !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
		return nil
	}))
	return out
}

// linknames lists the targets of a file's go:linkname directives, as PACKAGE.NAME.
func linknames(f *ast.File) (out []setting) {
	for _, group := range f.Comments {
		for _, c := range group.List {
			if words := strings.Fields(c.Text); len(words) == 3 && words[0] == "//go:linkname" {
				out = append(out, setting{name: path.Base(words[2]), how: "`go:linkname`"})
			}
		}
	}
	return out
}

// assignments lists the variables of other modules that a file assigns to, themselves or what they point to.
func assignments(f *ast.File) (out []setting) {
	imports := map[string]string{} // the last element of an import's path, by its name in this file
	for _, i := range f.Imports {
		p, _ := strconv.Unquote(i.Path.Value) // the parser has read it already
		first, _, _ := strings.Cut(p, "/")
		if !strings.Contains(first, ".") || strings.HasPrefix(p, module) {
			continue // the standard library's, or ours
		}
		base := path.Base(p)
		if regexp.MustCompile(`^v[0-9]+$`).MatchString(base) {
			base = path.Base(path.Dir(p))
		}
		name := base
		if i.Name != nil {
			name = i.Name.Name
		}
		imports[name] = base
	}
	ast.Inspect(f, func(n ast.Node) bool {
		a, ok := n.(*ast.AssignStmt)
		if !ok || a.Tok == token.DEFINE {
			return true
		}
		for _, left := range a.Lhs {
			if pkg, name := foreign(left); imports[pkg] != "" {
				out = append(out, setting{name: imports[pkg] + "." + name, how: "assignment"})
			}
		}
		return true
	})
	return out
}

// foreign finds PACKAGE.NAME at the root of an expression such as *package.Name or package.Name[i].Field.
func foreign(e ast.Expr) (pkg, name string) {
	for {
		switch x := e.(type) {
		case *ast.SelectorExpr:
			if id, ok := x.X.(*ast.Ident); ok {
				if id.Obj != nil { // a local variable, whatever its name
					return "", ""
				}
				return id.Name, x.Sel.Name
			}
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return "", ""
		}
	}
}
