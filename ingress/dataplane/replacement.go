// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/ingress/variable"
)

// replacement is a compiled table.Replacement.
type replacement struct {
	from string
	to   variable.Text
}

// compileReplacement returns nil if there is no replacement.
func compileReplacement(from *table.Replacement) (*replacement, error) {
	if from == nil {
		return nil, nil //nolint:nilnil // no replacement
	}
	to, err := variable.Parse(from.To)
	if err != nil {
		return nil, fmt.Errorf("reading what replaces %q: %w", from.From, err)
	}
	return &replacement{from.From, to}, nil
}

// domain replaces a whole domain. Case and a dot at its beginning do not matter.
func (r *replacement) domain(in *request, text string) (string, bool) {
	if !strings.EqualFold(strings.TrimPrefix(text, "."), strings.TrimPrefix(r.from, ".")) {
		return text, false
	}
	to, ok := in.expand(r.to)
	return to, ok
}

func (r *replacement) prefix(in *request, text string) (string, bool) {
	rest, ok := strings.CutPrefix(text, r.from)
	if !ok {
		return text, false
	}
	to, ok := in.expand(r.to)
	return to + rest, ok
}

// rewriteResponse changes the redirect targets and the cookies in the header of a backend's response, as nginx does.
func (p *policy) rewriteResponse(in *request, h http.Header) {
	if p.locationChange != nil {
		for _, name := range [...]string{"Location", "Refresh"} {
			values := h[name]
			for i, text := range values {
				before := ""
				if name == "Refresh" {
					at := strings.Index(strings.ToLower(text), "url=")
					if at < 0 {
						continue
					}
					before, text = text[:at+4], text[at+4:]
				}
				if changed, ok := p.locationChange.prefix(in, text); ok && isHeaderValue(changed) {
					values[i] = before + changed
				}
			}
		}
	}
	if p.cookieDomain == nil && p.cookiePath == nil {
		return
	}
	cookies := h["Set-Cookie"]
	for i, text := range cookies {
		cookies[i] = p.rewriteCookie(in, text)
	}
}

// rewriteCookie changes the attributes of a cookie. Its name and value stay unchanged.
func (p *policy) rewriteCookie(in *request, text string) string {
	parts := strings.Split(text, ";")
	for i, part := range parts[1:] {
		name, value, _ := strings.Cut(part, "=")
		changed, ok := "", false
		switch attribute := strings.ToLower(strings.TrimSpace(name)); {
		case attribute == "domain" && p.cookieDomain != nil:
			changed, ok = p.cookieDomain.domain(in, strings.TrimSpace(value))
		case attribute == "path" && p.cookiePath != nil:
			changed, ok = p.cookiePath.prefix(in, strings.TrimSpace(value))
		}
		if ok && isHeaderValue(changed) && !strings.Contains(changed, ";") {
			parts[i+1] = name + "=" + changed
		}
	}
	return strings.Join(parts, ";")
}
