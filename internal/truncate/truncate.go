// SPDX-License-Identifier: Apache-2.0

// Package truncate limits the length of texts.
package truncate

import "strings"

// Text returns a text, or its first limit bytes with an ellipsis if it is longer. It ends at a character's boundary.
func Text(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
