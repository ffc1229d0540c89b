// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestPathsAreNormalisedBeforeMatching(t *testing.T) {
	for _, c := range []struct{ raw, forward, match string }{
		{"/", "/", "/"},
		{"", "/", "/"},
		{"/a/b", "/a/b", "/a/b"},
		{"/a//b///", "/a/b/", "/a/b/"},
		{"/a/./b/.", "/a/b/", "/a/b/"},
		{"/public/../admin", "/admin", "/admin"},
		{"/public/%2e%2E/admin", "/admin", "/admin"},
		{"/public/.%2e/admin/", "/admin/", "/admin/"},
		{"/public/..;/admin", "/admin", "/admin"},
		{"/public/..;a=b/admin", "/admin", "/admin"},
		{"/public/..%3b/admin", "/admin", "/admin"},
		{"/../../a", "/a", "/a"},
		{"/a%2fb", "/a%2Fb", "/a%2Fb"},
		{"/%61%7Eb", "/a~b", "/a~b"},
		{"/a%252Fb", "/a%252Fb", "/a%252Fb"},
		{"/a%2Fb^", "/a%2Fb%5E", "/a%2Fb^"},
		{"/föö", "/f%C3%B6%C3%B6", "/föö"},
		{"/f%c3%b6%C3%B6", "/f%C3%B6%C3%B6", "/föö"},
		{"/a;b=c/d", "/a;b=c/d", "/a;b=c/d"},
		{"/.well-known/acme-challenge/x", "/.well-known/acme-challenge/x", "/.well-known/acme-challenge/x"},
		{"/...", "/...", "/..."},
		{"/a/..", "/", "/"},
	} {
		got, err := normalise(c.raw)
		if err != nil || got.forward != c.forward || got.match != c.match {
			t.Errorf("normalise(%q) = %+v, %v; want %q and %q", c.raw, got, err, c.forward, c.match)
		}
	}
}

func TestPathsThatBackendsReadDifferentlyAreRefused(t *testing.T) {
	for _, raw := range []string{
		"/public/..%2fadmin", "/public/%2e%2e%5Cadmin", `/public/..\admin`, "/a/b%2F..%2F..%2Fc", "/a/x%2F..;/c", "/a%00b",
	} {
		if got, err := normalise(raw); err == nil {
			t.Errorf("normalise(%q) = %+v, want an error", raw, got)
		}
	}
}

func TestEncodedPathsMatchLeniently(t *testing.T) {
	for match, want := range map[string]string{
		"/a/b": "/a/b", "/a%2Fb": "/a/b", `/a\b`: "/a/b", "/a;x=1/b": "/a/b", "/a;/": "/a/", "/;x/a": "/a", "/a%2F": "/a/", "/a;": "/a", "/%25a": "/%25a", "/;": "/", "/a%2F;b%2Fc": "/a/c",
	} {
		testenv.Equal(t, lenientPath(match), want, "lenientPath(%q) =", match)
	}
}

func TestQueriesAreOfOneWord(t *testing.T) {
	for raw, want := range map[string]string{"": "", "a=1;b=2&c=%20+": "a=1;b=2&c=%20+", "x HTTP/1.1": "x%20HTTP/1.1", "ä#": "%C3%A4%23", "a\"<>'": "a\"<>'"} {
		testenv.Equal(t, cleanQuery(raw), want, "cleanQuery(%q) =", raw)
	}
}

// FuzzPath: whatever a backend decodes, the normalised path stays below its first segment, and is its own normalised
// form.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		"/public/..;/", "/public/%2e%2e/x", "/public/..%2Fx", "/public//../x", `/public/..\x`, "/a%2F%2e%2e;%2Fb", "/%", "/%3b/..%3b/",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := normalise(raw)
		if err != nil {
			return
		}
		again, err := normalise(got.forward)
		testenv.Require(t, err == nil && again == got, "normalise(%q) = %+v, and of that %+v, %v", raw, got, again, err)
		decoded, err := url.PathUnescape(got.forward)
		testenv.NoError(t, err, "normalise(%q) = %q, which cannot be decoded", raw, got.forward)
		if decoded != strings.NewReplacer("%2F", "/", "%25", "%").Replace(got.match) {
			t.Fatalf("normalise(%q) matches %q but sends %q", raw, got.match, got.forward)
		}
		if lenient := lenientPath(got.match); lenient == "" || lenient[0] != '/' || strings.Contains(lenient, "//") || strings.ContainsAny(lenient, ";\\") ||
			path.Clean(lenient) != strings.TrimSuffix(lenient, "/") && lenient != "/" {
			t.Fatalf("normalise(%q) = %q, which is leniently read as %q", raw, got.match, lenient)
		}
		first, rest, below := strings.Cut(strings.TrimPrefix(got.forward, "/"), "/")
		if !below {
			return
		}
		for _, lenient := range []func(string) string{
			func(s string) string { return s },
			func(s string) string { s, _ = url.PathUnescape(s); return s },
			func(s string) string { return withoutParameters(s) },
			func(s string) string { s, _ = url.PathUnescape(withoutParameters(s)); return s },
			func(s string) string { s, _ = url.PathUnescape(s); return withoutParameters(s) },
		} {
			seen := path.Clean("/" + first[:0] + "x/" + strings.ReplaceAll(lenient(rest), `\`, "/"))
			testenv.Require(t, seen == "/x" || strings.HasPrefix(seen, "/x/"),
				"normalise(%q) = %q, which a backend may read as %q", raw, got.forward, seen)
		}
	})
}

// withoutParameters removes what follows a semicolon in each segment, as servlet containers do.
func withoutParameters(p string) string {
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}

func TestHostHeaderIsNormalised(t *testing.T) {
	for header, want := range map[string]string{
		"Example.ORG": "example.org", "example.org:8080": "example.org", "example.org.": "example.org", "example.org.:80": "example.org",
		"[fd00::1]:80": "[fd00::1]", "10.0.0.1": "10.0.0.1", "": "", "example.org:": "example.org",
	} {
		if got, ok := hostName(header); !ok || got != want {
			t.Errorf("hostName(%q) = %q, %v; want %q", header, got, ok, want)
		}
	}
	for _, header := range []string{"*.example.org", "a b", "a/b", "a:b:c", "[fd00::1", "a:port", "a\x00", "user@a"} {
		if got, ok := hostName(header); ok {
			t.Errorf("hostName(%q) = %q, want none", header, got)
		}
	}
}
