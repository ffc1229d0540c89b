// SPDX-License-Identifier: Apache-2.0

// Package truncate limits the length and the characters of texts.
package truncate

import (
	"strings"
	"unicode"
)

// Text returns a text, or its first limit bytes with an ellipsis if it is longer. It ends at a character's boundary.
func Text(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// Printable replaces characters that a terminal would interpret, or that break a line, by question marks. Those in
// except stay.
func Printable(text, except string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || strings.ContainsRune(except, r) {
			return r
		}
		return '?'
	}, text)
}
