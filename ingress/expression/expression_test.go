// SPDX-License-Identifier: Apache-2.0

package expression_test

import (
	"regexp"
	"regexp/syntax"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/test/testenv"
)

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
		if r, n, err := expression.Compile(c.text); (err == nil) != c.good || c.good && (r == nil || n < 1) {
			t.Errorf("Compile(%.40q) = %d, %v", c.text, n, err)
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
		r, _, err := expression.Prefix(c.text, c.fold)
		testenv.False(t, err != nil || r.MatchString(c.path) != c.match, "%s and %s: %v", c.text, c.path, err)
	}
	for _, text := range []string{"/a)|(?:/", `/\Qa`, "(", "/a{999}b{999}c{999}"} {
		if _, _, err := expression.Prefix(text, true); err == nil {
			t.Errorf("%s is let through", text)
		}
	}
}

// FuzzCompile: what is let through has a program of about the size that was estimated.
func FuzzCompile(f *testing.F) {
	for _, seed := range []string{`/a(b|c)*`, `/(a{9}){9}`, `/(?i)\pL{20}x`, `/((.*a){9}|b?){7}`, `[^a]{5,}`, `(|a){3}`, `(?:(?:^){9}){9}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, n, err := expression.Compile(text)
		if err != nil {
			return
		}
		if _, err := regexp.Compile(text); err != nil || r == nil {
			t.Fatalf("%q is let through, and is none: %v", text, err)
		}
		tree := testenv.Must(syntax.Parse(text, syntax.Perl))(t)
		prog := testenv.Must(syntax.Compile(tree.Simplify()))(t)
		testenv.False(t, len(prog.Inst) > 3*n+16, "%q has %d instructions, and %d were estimated", text, len(prog.Inst), n)
	})
}
