// SPDX-License-Identifier: Apache-2.0

// Package variable parses texts with variables of nginx, such as https://$host$request_uri. It has the names of the
// variables and not their values.
package variable

import (
	"fmt"
	"slices"
	"strings"
)

// Segment is a literal text, or the name of a variable.
type Segment struct {
	Literal, Name string
}

// Text is the result of Parse.
type Text []Segment

// names are the supported variables. prefixes are the beginnings of further supported ones.
var (
	names = []string{"host", "http_host", "scheme", "request_uri", "escaped_request_uri", "uri", "document_uri", "args", "query_string",
		"is_args",
		"remote_addr", "request_method", "server_name", "best_http_host", "pass_access_scheme", "binary_remote_addr"}
	prefixes = []string{"arg_", "http_", "cookie_"}
)

// MaxVariables limits the variables of a text: each is looked up in the whole request.
const MaxVariables = 32

// Parse parses a text. The error names a variable that is not supported, or says that there are more than MaxVariables.
func Parse(text string) (Text, error) {
	var out Text
	variables := 0
	for text != "" {
		at := strings.IndexByte(text, '$')
		if at != 0 {
			if at < 0 {
				at = len(text)
			}
			out = append(out, Segment{Literal: text[:at]})
			text = text[at:]
			continue
		}
		name, rest, ok := cutName(text[1:])
		if !ok {
			return nil, fmt.Errorf("%q names no variable", text)
		}
		if !isKnown(name) {
			return nil, fmt.Errorf("the variable $%s of nginx is not served", name)
		}
		if variables++; variables > MaxVariables {
			return nil, fmt.Errorf("it has more than %d variables", MaxVariables)
		}
		out = append(out, Segment{Name: name})
		text = rest
	}
	return out, nil
}

func isKnown(name string) bool {
	return slices.Contains(names, name) || slices.ContainsFunc(prefixes, func(p string) bool {
		return len(name) > len(p) &&
			strings.HasPrefix(name, p)
	})
}

// cutName returns the name, with or without braces, at the beginning of the text after a dollar sign.
func cutName(text string) (name, rest string, ok bool) {
	if inner, braced := strings.CutPrefix(text, "{"); braced {
		name, rest, ok = strings.Cut(inner, "}")
		return name, rest, ok && name != "" && nameLength(name) == len(name)
	}
	n := nameLength(text)
	return text[:n], text[n:], n > 0
}

func nameLength(text string) int {
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return i
		}
	}
	return len(text)
}
