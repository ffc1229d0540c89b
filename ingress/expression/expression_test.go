// SPDX-License-Identifier: Apache-2.0

package expression_test

import (
	"errors"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// read reads an expression of a namespace that has room for all.
func read(text string, form expression.Form) (out expression.Expression, err error) {
	err = expression.Read(text, form, func(e expression.Expression) bool {
		out = e
		return true
	})
	return out, err
}

func TestCostlyExpressionsAreRefused(t *testing.T) {
	for _, c := range []struct {
		text string
		good bool
	}{
		{`/api(/|$)(.*)`, true},
		{`/(` + strings.Repeat("users|", 100) + `groups)/[^/]+\.(css|js|png)$`, true},
		{`/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`, true},
		{`/\p{L}+`, true},
		{`/(?!x)`, false},
		{"/" + strings.Repeat("a", expression.MaxLength), false},
		{"/" + strings.Repeat("a{999}", 3), false},
		{"/(" + strings.Repeat("(.*a){99}|", 90) + "x)", false},
		{"/((.{9}){9}){99}", false},
		{"/" + strings.Repeat(`\pL{9}`, 9), false},
	} {
		if e, err := read(c.text, expression.Anywhere); (err == nil) != c.good || c.good && e.Steps < 1 {
			t.Errorf("%.40q: %+v, %v", c.text, e, err)
		}
	}
}

func TestPrefixMatchesFromTheBeginning(t *testing.T) {
	for _, c := range []struct {
		text  string
		fold  bool
		path  string
		match bool
	}{
		{"/a|/b", false, "/bc", true}, {"/a|/b", false, "/c/b", false}, {"/a", true, "/A", true}, {"/a", false, "/A", false}, {"(?i)/a", false, "/A", true},
	} {
		form := expression.Prefix
		if c.fold {
			form = expression.PrefixFold
		}
		e := testenv.Must(read(c.text, form))(t)
		pattern := testenv.Must(e.Compile())(t)
		testenv.Equal(t, pattern.MatchString(c.path), c.match, "%s and %s:", c.text, c.path)
	}
	for _, text := range []string{"/a)|(?:/", `/\Qa`, "(", "/a{999}b{999}c{999}"} {
		testenv.Fails(t, testenv.Err(read(text, expression.PrefixFold)), "%s is let through", text)
	}
}

// FuzzCompile: what is let through has a program of about the size that was estimated.
func FuzzCompile(f *testing.F) {
	for _, seed := range []string{`/a(b|c)*`, `/(a{9}){9}`, `/(?i)\pL{20}x`, `/((.*a){9}|b?){7}`, `[^a]{5,}`, `(|a){3}`, `(?:(?:^){9}){9}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := read(text, expression.Anywhere)
		if err != nil {
			return
		}
		if _, err := e.Compile(); err != nil {
			t.Fatalf("%q is let through, and is none: %v", text, err)
		}
		tree := testenv.Must(syntax.Parse(text, syntax.Perl))(t)
		prog := testenv.Must(syntax.Compile(tree.Simplify()))(t)
		testenv.False(t, len(prog.Inst) > 3*e.Steps+16, "%q has %d instructions, and %d were estimated", text, len(prog.Inst), e.Steps)
	})
}

// TestUnchargedExpressionsAreRefused: without room for it there is no expression.
func TestUnchargedExpressionsAreRefused(t *testing.T) {
	charged := 0
	err := expression.Read("/a+", expression.Prefix, func(e expression.Expression) bool {
		charged = e.Steps
		return false
	})
	testenv.True(t, errors.Is(err, expression.ErrBudget) && charged > 0, "%d steps were charged: %v", charged, err)
}

// FuzzLiteral: literal text is compared as an expression would be, and has no program.
func FuzzLiteral(f *testing.F) {
	for _, seed := range [][2]string{
		{"/a/b-c", "/A/b-C/d"}, {"/k", "/\u212ax"}, {"/s", "/\u017f"}, {"/\u017f", "/S"}, {"/a", "/"}, {"/a", ""}, {"", "/"}, {"/\ufffd", "/\xff"}, {"/é", "/É"}, {"/a.b", "/axb"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, text, path string) {
		for _, form := range []expression.Form{expression.Prefix, expression.PrefixFold} {
			e, err := read(text, form)
			if err != nil {
				return
			}
			testenv.Equal(t, e.Steps == 0, regexp.QuoteMeta(text) == text && !strings.ContainsRune(text, utf8.RuneError), "%q: %+v, without steps is", text, e)
			pattern := testenv.Must(e.Compile())(t)
			program := regexp.MustCompile(e.Source())
			testenv.Equal(t, pattern.MatchString(path), program.MatchString(path), "%q matches %q", e.Source(), path)
			if got, want := pattern.Groups(path), program.FindStringSubmatchIndex(path); !slices.Equal(got[min(2, len(got)):], want[min(2, len(want)):]) {
				t.Errorf("the groups of %q in %q are %v, want %v", e.Source(), path, got, want)
			}
		}
	})
}
