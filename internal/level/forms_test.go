// SPDX-License-Identifier: Apache-2.0

package level

import (
	"crypto/sha256"
	"encoding/hex"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// formsFile has the level and the name of each form, one a line.
const formsFile = "testdata/forms.txt"

// howToAdd is what to do about a form that has no level.
const howToAdd = `
A program of the version before does not know it (docs/CONTRIBUTING.md, "How to change a form"):
  1. If that program ignores it and may drop it, and that is harmless, it belongs to the newest level: add the line
     "LEVEL FORM" to internal/level/testdata/forms.txt, and the reason to its comment.
  2. Otherwise it belongs to the next level, an entry in internal/level/minors.go. Send or store it only where the cluster
     has that level: on a server Levels.Cluster, on an agent the level of the join response, in the store replica.level.
  3. Hosts of the ingress table, log entries and snapshots are always of the second kind: a reader does not ignore what
     it does not know. A test shows that the level before does not make it.`

// TestFormsHaveLevels holds what machines send to one another, or store where another version reads it: fields of
// messages in JSON, tags, names of requests and protocols, and our definitions of kinds. The forms of the store have
// tests of their own (raftstore). A new form needs a level, and so does a changed definition.
func TestFormsHaveLevels(t *testing.T) {
	levels := map[string]int{}
	for line := range strings.Lines(string(testenv.Must(os.ReadFile(formsFile))(t))) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		at, form, _ := strings.Cut(strings.TrimSpace(line), " ")
		n := testenv.Must(strconv.Atoi(at))(t)
		testenv.False(t, n < First || n > Newest(), "%s has level %d, which no program knows: add it to minors.go", form, n)
		testenv.False(t, levels[form] > 0, "%s is listed twice", form)
		levels[form] = n
	}
	forms := sourceForms(t)
	testenv.True(t, len(forms) > 150, "only %d forms were found: the search is broken", len(forms))
	for _, f := range forms {
		if levels[f] == 0 {
			t.Errorf("%s has no level.%s", f, howToAdd)
		}
		delete(levels, f)
	}
	for f, n := range levels {
		t.Errorf("%s is gone, and programs of level %d may need it: keep it as long as that level is known (Oldest), or, if nothing reads it, "+
			"remove it from %s", f, n, formsFile)
	}
}

// sources are the packages with forms. names matches constants that are forms by their value.
var sources = []struct {
	dir    string
	fields bool
	names  *regexp.Regexp
}{
	{"joining/protocol", true, regexp.MustCompile(`^(Protocol|Want\w+|Code\w+)$`)},
	{"internal/clusterconfig", true, regexp.MustCompile(`ConfigMap$`)},
	{"internal/loadbalancer", true, regexp.MustCompile(`^ConfigMap$`)},
	{"joining/node", true, nil},
	{"server/admission", true, nil},
	{"gossip", false, regexp.MustCompile(`^(ALPN|metaFormat|tag\w+|\w+Message)$`)},
	{"ingress/table", true, regexp.MustCompile(`^(Kind|Path)\w+$`)},
	{"localvolume", true, regexp.MustCompile(`^(Make|Remove|Grow|Space)$`)},
	{"nodetunnel", true, regexp.MustCompile(`^Protocol$`)},
	{"server/peertls", false, regexp.MustCompile(`^Protocol$`)},
	{"server/liveness", true, regexp.MustCompile(`^Protocol$`)},
	{"internal/clustersettings", true, regexp.MustCompile(`^DNS$`)},
}

// contents are files that are forms as a whole.
var contents = []string{
	"controllers/helmcharts/kinds/helmchart.yaml", "controllers/helmcharts/kinds/helmchartconfig.yaml",
	"controllers/servicelb/addresspool/addresspool.yaml",
}

// sourceForms returns the forms in the sources: PACKAGE TYPE.FIELD, PACKAGE NAME=VALUE, and FILE DIGEST.
func sourceForms(t *testing.T) (out []string) {
	for _, s := range sources {
		files := testenv.Must(filepath.Glob(filepath.Join("../..", s.dir, "*.go")))(t)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			tree := testenv.Must(parser.ParseFile(token.NewFileSet(), file, nil, 0))(t)
			for _, d := range tree.Decls {
				if g, ok := d.(*ast.GenDecl); ok {
					for _, spec := range g.Specs {
						out = append(out, formsOf(s.dir, s.fields, s.names, spec)...)
					}
				}
			}
		}
	}
	for _, file := range contents {
		sum := sha256.Sum256(testenv.Must(os.ReadFile(filepath.Join("../..", file)))(t))
		out = append(out, file+" "+hex.EncodeToString(sum[:8]))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func formsOf(dir string, fields bool, names *regexp.Regexp, spec ast.Spec) (out []string) {
	switch spec := spec.(type) {
	case *ast.ValueSpec:
		for i, name := range spec.Names {
			if names == nil || !names.MatchString(name.Name) || i >= len(spec.Values) {
				continue
			}
			if value, ok := spec.Values[i].(*ast.BasicLit); ok {
				out = append(out, dir+" "+name.Name+"="+value.Value)
			}
		}
	case *ast.TypeSpec:
		structure, ok := spec.Type.(*ast.StructType)
		if !ok || !fields {
			return nil
		}
		for _, f := range structure.Fields.List {
			if f.Tag == nil {
				continue
			}
			tag, _ := strconv.Unquote(f.Tag.Value)
			if name, tagged := reflect.StructTag(tag).Lookup("json"); tagged {
				name, _, _ = strings.Cut(name, ",")
				out = append(out, dir+" "+spec.Name.Name+"."+name)
			}
		}
	}
	return out
}
