// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// plainer are everyday words that name nothing in an identifier, each with words of the field to take instead.
var plainer = map[string]string{
	"told":      "sent, reported, logged, notified",
	"vain":      "unavailable, failed",
	"kin":       "shared, deduplicated",
	"alike":     "equal, shared",
	"lone":      "standalone, single",
	"wish":      "desired, requested",
	"wishes":    "desired, requested",
	"nobody":    "no-op (nopX), none, unreachable",
	"somebody":  "other, foreign, user",
	"anybody":   "any client, peer, user",
	"everybody": "all; each client, peer, user",
	"someone":   "other, foreign, user",
	"whoever":   "client, caller, peer",
	"whomever":  "client, caller, peer",
	"stranger":  "foreign, unknown, untrusted, external",
	"strangers": "foreign, unknown, untrusted, external",
	"theirs":    "remote, peer, foreign, upstream",
	"looks":     "probes, polls, samples",
	"looked":    "probed, polled, checked",
	"hang":      "stall, block, stuck; for closing connections: close, drain",
	"hangs":     "stalled, blocked, stuck",
	"hung":      "stalled, blocked, stuck; for closing connections: closed, drained",
	"came":      "received, arrived",
	"anew":      "restart, reopen, repeat",
	"together":  "aligned (timers), simultaneous",
	"elsewhere": "remote, other, second; failover target",
	"believed":  "trusted, admitted",
	"bequeath":  "transfer",
	"reign":     "term",
	"reigns":    "terms",
	"detour":    "failover",
	"door":      "proxy, listener",
	"kindred":   "shared, deduplicated",
	"harmed":    "damaged, failed",
	"excuse":    "reason",
	"blame":     "cause, rejected",
	"deaf":      "unresponsive",
}

// plainerMessages are words that log messages may not have either.
var plainerMessages = map[string]string{"hung": "stalled, closed", "silent": "unresponsive", "believed": "trusted",
	"taken out of": "removed from"}

// plainerComments are words that comments may not have: they leave open who is meant, or what happens. Names such as
// http.NoBody are other words.
var plainerComments = regexp.MustCompile(`\b([Nn]obody|[Ss]omebody|[Ww]hoever|[Tt]old|[Aa]new|in vain)\b`)

const (
	benchmark = "a benchmark has the name of what it measures, and is asked for by it: make bench-net RUN=TestPods"
	suite     = "what it runs has names of its own: scripts, upstream's tests, or the faults and the length of a run"
)

// oneWord are names of tests that may be one word, each with its reason.
var oneWord = map[string]string{
	"TestBench": benchmark, "TestChurn": benchmark, "TestLimit": benchmark, // test/bench
	"TestBetween": benchmark, "TestIngress": benchmark, "TestMachine": benchmark, "TestPods": benchmark, // test/benchnet
	"TestPolicies": benchmark, "TestServices": benchmark,
	"TestFailover": benchmark, "TestFleet": benchmark, "TestRest": benchmark, "TestWrites": benchmark, // test/ha
	"TestChaos": suite, "TestConformance": suite, "TestScripts": suite, "TestSoak": suite,
	"TestFlood": "it tests nothing: TestIngressTimes starts it as a child process",
}

var logMethod = regexp.MustCompile(`\.(Debug|Info|Warn|Error)$`)

func TestIdentifiersAndCommentsUseWordsOfTheField(t *testing.T) {
	files, excepted := token.NewFileSet(), map[string]bool{}
	testenv.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build"):
			return filepath.SkipDir
		case d.IsDir(), filepath.Ext(path) != ".go":
			return nil
		}
		f, err := parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, id := range declared(f) {
			for _, word := range wordsOf(id.Name) {
				testenv.Equal(t, plainer[word], "", "%s: %s: %q is no word of the field; better:", files.Position(id.Pos()), id.Name, word)
			}
		}
		checkDocComments(t, files, f)
		checkTestNames(t, files, f, excepted)
		for _, g := range f.Comments {
			for _, c := range g.List {
				if found := plainerComments.FindString(c.Text); found != "" && path != "words_test.go" {
					t.Errorf("%s: %q is no word for a comment: say which client, server or process it is, and what it does",
						files.Position(c.Pos()), found)
				}
			}
		}
		if !strings.HasSuffix(path, "_test.go") && !strings.HasPrefix(path, "test/") {
			checkLogged(t, files, f)
		}
		return nil
	}))
	for name := range oneWord {
		testenv.True(t, excepted[name], "there is no test %s any more that may be one word", name)
	}
}

// TestGlossaryAndWordsAgree: no word that identifiers may not have is one that the glossary asks for.
func TestGlossaryAndWordsAgree(t *testing.T) {
	page := testenv.Must(os.ReadFile("docs/CONTRIBUTING.md"))(t)
	_, glossary, _ := strings.Cut(string(page), "\n## Words\n")
	glossary, _, _ = strings.Cut(glossary, "\n## ")
	rows := 0
	for line := range strings.Lines(glossary) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			continue
		}
		rows++
		for _, word := range strings.FieldsFunc(strings.ToLower(cells[2]), func(r rune) bool { return !unicode.IsLetter(r) }) {
			testenv.True(t, plainer[word] == "", "docs/CONTRIBUTING.md asks for %q, which identifiers may not have: %s", word, line)
		}
	}
	testenv.True(t, rows >= 20, "the glossary of docs/CONTRIBUTING.md has %d rows only", rows)
}

func TestWordsOf(t *testing.T) {
	for name, want := range map[string]string{
		"x": "x", "hangUp": "hang up", "ErrAnew": "err anew", "change": "change", "TLSTold": "tls told", "told_us": "told us", "v6Look": "v6 look", "onHTTP": "on http",
	} {
		testenv.Equal(t, strings.Join(wordsOf(name), " "), want, "wordsOf(%s) is", name)
	}
}

// declared returns the identifiers that a file declares: functions, types, variables, constants, fields, methods,
// parameters and labels.
func declared(f *ast.File) []*ast.Ident {
	var out []*ast.Ident
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			out = append(out, n.Name)
		case *ast.TypeSpec:
			out = append(out, n.Name)
		case *ast.ValueSpec:
			out = append(out, n.Names...)
		case *ast.Field:
			out = append(out, n.Names...)
		case *ast.LabeledStmt:
			out = append(out, n.Label)
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				out = append(out, identifiers(n.Lhs)...)
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				out = append(out, identifiers([]ast.Expr{n.Key, n.Value})...)
			}
		}
		return true
	})
	return out
}

// checkDocComments fails where the comment of a declaration begins with another identifier than the declared one: one
// that is renamed does not take its comment along.
func checkDocComments(t *testing.T, files *token.FileSet, f *ast.File) {
	check := func(doc *ast.CommentGroup, names []*ast.Ident) {
		first, _, _ := strings.Cut(strings.NewReplacer("\n", " ", ",", " ", ":", " ", "'", " ").Replace(doc.Text()), " ")
		if len(names) == 0 || !token.IsIdentifier(first) || token.IsExported(first) && strings.ToLower(first[1:]) == first[1:] {
			return // no name, or a word that begins a sentence
		}
		if !slices.ContainsFunc(names, func(n *ast.Ident) bool { return n.Name == first }) {
			t.Errorf("%s: the comment of %s begins with %q", files.Position(doc.Pos()), names[0].Name, first)
		}
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			check(d.Doc, []*ast.Ident{d.Name})
		case *ast.GenDecl:
			var all []*ast.Ident
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					check(s.Doc, []*ast.Ident{s.Name})
					all = append(all, s.Name)
				case *ast.ValueSpec:
					check(s.Doc, s.Names)
					all = append(all, s.Names...)
				}
			}
			check(d.Doc, all)
		}
	}
}

// checkTestNames fails where the name of a test is one word after Test, which is a subject and not what must be true of
// it. Those of oneWord that it finds are added to excepted.
func checkTestNames(t *testing.T, files *token.FileSet, f *ast.File, excepted map[string]bool) {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || len(fn.Type.Params.List) != 1 || types.ExprString(fn.Type.Params.List[0].Type) != "*testing.T" {
			continue // no test; TestMain has a *testing.M
		}
		switch words := wordsOf(fn.Name.Name); {
		case !fn.Name.IsExported() || words[0] != "test":
		case oneWord[fn.Name.Name] != "":
			excepted[fn.Name.Name] = true
		default:
			testenv.True(t, len(words) > 2, "%s: %s is one word: say what must be true, as in TestLeaseExpiresOnlyAfterTTL",
				files.Position(fn.Pos()), fn.Name.Name)
		}
	}
}

// checkLogged checks the messages of log.Info and the like.
func checkLogged(t *testing.T, files *token.FileSet, f *ast.File) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || !logMethod.MatchString(types.ExprString(call.Fun)) {
			return true
		}
		for _, arg := range call.Args[:min(2, len(call.Args))] { // logr's Error has the error first
			message := types.ExprString(arg)
			for _, words := range []map[string]string{plainer, plainerMessages} {
				for word, better := range words {
					if strings.HasPrefix(message, `"`) && regexp.MustCompile(`(?i)\b`+word+`\b`).MatchString(message) {
						t.Errorf("%s: %q is no word for a log message; better: %s", files.Position(arg.Pos()), word, better)
					}
				}
			}
		}
		return true
	})
}

func identifiers(all []ast.Expr) []*ast.Ident {
	var out []*ast.Ident
	for _, e := range all {
		if id, ok := e.(*ast.Ident); ok {
			out = append(out, id)
		}
	}
	return out
}

// wordsOf returns the words of a name in camel case, in small letters. An abbreviation in capitals is one word.
func wordsOf(name string) []string {
	var out []string
	letters := []rune(name)
	begin := 0
	for i := 1; i <= len(letters); i++ {
		if i < len(letters) && letters[i] != '_' {
			afterSmall := unicode.IsUpper(letters[i]) && !unicode.IsUpper(letters[i-1])
			endOfCapitals := unicode.IsUpper(letters[i]) && i+1 < len(letters) && unicode.IsLower(letters[i+1])
			if !afterSmall && !endOfCapitals {
				continue
			}
		}
		if word := strings.Trim(string(letters[begin:i]), "_"); word != "" {
			out = append(out, strings.ToLower(word))
		}
		begin = i
	}
	return out
}
