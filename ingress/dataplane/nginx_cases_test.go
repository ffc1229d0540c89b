// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNginxCasesAreAccountedFor reads the tables of ingress-nginx's own end-to-end tests. Each case has one of our
// tests that shows the behaviour, or a reason.
func TestNginxCasesAreAccountedFor(t *testing.T) {
	tables, err := filepath.Glob("testdata/nginx-cases/*.tsv")
	if err != nil || len(tables) == 0 {
		t.Fatal("there are no tables", err)
	}
	packages, seen := map[string]map[string]string{}, map[string]bool{}
	for _, name := range tables {
		for i, line := range strings.Split(strings.TrimSuffix(source(t, name), "\n"), "\n") {
			if strings.HasPrefix(line, "#") {
				continue
			}
			columns := append(strings.Split(line, "\t"), "")
			if len(columns) < 4 || len(columns) > 5 {
				t.Errorf("%s:%d has not the columns file, case, test and reason", name, i+1)
				continue
			}
			one, test := columns[0]+"\t"+columns[1], columns[2]
			testenv.False(t, seen[one] || test == "-" && columns[3] == "",
				"%s:%d is a case for the second time, or has neither a test nor a reason", name, i+1)
			if seen[one] = true; test == "-" {
				continue
			}
			folder, rest, _ := strings.Cut(test, ".")
			function, subtest, has := strings.Cut(rest, "/")
			if !strings.Contains(folder, "/") {
				folder = "ingress/" + folder
			}
			if packages[folder] == nil {
				packages[folder] = testsOf(t, folder)
			}
			if text := packages[folder][function]; text == "" || has && !strings.Contains(text, strconv.Quote(subtest)) {
				t.Errorf("%s:%d: the folder %s has no test %s", name, i+1, folder, rest)
			}
		}
	}
}

// testsOf are the test functions of a folder, with the text of their files.
func testsOf(t *testing.T, folder string) map[string]string {
	files, _ := filepath.Glob(filepath.Join("../..", folder, "*_test.go"))
	out := map[string]string{}
	for _, name := range files {
		text := source(t, name)
		file := testenv.Must(parser.ParseFile(gotoken.NewFileSet(), name, text, 0))(t)
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				out[f.Name.Name] = text
			}
		}
	}
	return out
}

func source(t *testing.T, name string) string {
	text := testenv.Must(os.ReadFile(name))(t)
	return string(text)
}
