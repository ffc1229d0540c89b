// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"strings"
)

// errPath is returned for a path that different backends would read in different ways, whatever its normalised form.
var errPath = errors.New("the path holds an encoded separator beside a dot segment, or a zero byte")

// cleanPath is a normalised path in two forms.
type cleanPath struct {
	// forward is the path for the backend: escaped, without empty and dot segments. Escapes of unreserved characters
	// are decoded (RFC 3986, 6.2.2).
	forward string
	// match is the path that routes are compared with: forward with all escapes decoded, except %2F, which is no
	// separator, and %25.
	match string
}

// normalise returns the normalised path of a request. raw is the path as the client sent it. Segments such as "..;x",
// which some backends read as "..", are dot segments. A dot segment beside %2F or %5C is an error, since backends that
// decode these would leave the route's prefix.
func normalise(raw string) (cleanPath, error) {
	if isPlain(raw) {
		return cleanPath{forward: raw, match: raw}, nil
	}
	escaped, err := canonicalEscapes(raw)
	if err != nil {
		return cleanPath{}, err
	}
	forward, err := removeDots(escaped)
	if err != nil {
		return cleanPath{}, err
	}
	return cleanPath{forward: forward, match: decodeForMatch(forward)}, nil
}

// isPlain reports whether a path is its own normalised form. Most paths are, and need no allocation.
func isPlain(raw string) bool {
	if raw == "" || raw[0] != '/' {
		return false
	}
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch {
		case c == '/':
			if i+1 < len(raw) && (raw[i+1] == '/' || raw[i+1] == '.') {
				return false
			}
		case c == ';' || !isPathByte(c):
			return false
		}
	}
	return true
}

// canonicalEscapes decodes escapes of unreserved characters. It escapes characters that a path may not hold. Equal
// paths are thus equal text.
func canonicalEscapes(raw string) (string, error) {
	const hexDigits = "0123456789ABCDEF"
	var out strings.Builder
	out.Grow(len(raw) + 16)
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '%' {
			if i+2 < len(raw) && isHex(raw[i+1]) && isHex(raw[i+2]) {
				c = unhex(raw[i+1])<<4 | unhex(raw[i+2])
				i += 2
				if isUnreserved(c) {
					out.WriteByte(c)
					continue
				}
			}
		} else if isPathByte(c) {
			out.WriteByte(c)
			continue
		}
		if c == 0 {
			return "", errPath
		}
		out.WriteByte('%')
		out.WriteByte(hexDigits[c>>4])
		out.WriteByte(hexDigits[c&15])
	}
	return out.String(), nil
}

// removeDots removes empty and dot segments from a path with canonical escapes.
func removeDots(path string) (string, error) {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	kept := segments[:0]
	slash := false // whether the path ends with a slash
	for _, segment := range segments {
		slash = false
		switch kind := dotKind(segment); {
		case segment == "" || kind == ".":
			slash = true
		case kind == "..":
			slash = true
			kept = kept[:max(0, len(kept)-1)]
		case hidesDots(segment):
			return "", errPath
		default:
			kept = append(kept, segment)
		}
	}
	if len(kept) == 0 {
		return "/", nil
	}
	out := "/" + strings.Join(kept, "/")
	if slash {
		out += "/"
	}
	return out, nil
}

// dotKind returns "." or ".." for dot segments, with or without parameters after a semicolon. It returns "" for others.
func dotKind(segment string) string {
	if segment == "" || segment[0] != '.' {
		return ""
	}
	name, _, _ := strings.Cut(segment, ";")
	name, _, _ = strings.Cut(name, "%3B")
	if name == "." || name == ".." {
		return name
	}
	return ""
}

// hidesDots reports whether a segment would hold a dot segment once its encoded slashes or backslashes are decoded.
func hidesDots(segment string) bool {
	if !strings.Contains(segment, "%2F") && !strings.Contains(segment, "%5C") {
		return false
	}
	for part := range strings.SplitSeq(strings.ReplaceAll(segment, "%5C", "%2F"), "%2F") {
		if dotKind(part) != "" {
			return true
		}
	}
	return false
}

// decodeForMatch returns the match form of a normalised path.
func decodeForMatch(forward string) string {
	if !strings.Contains(forward, "%") {
		return forward
	}
	var out strings.Builder
	out.Grow(len(forward))
	for i := 0; i < len(forward); i++ {
		c := forward[i]
		if c == '%' {
			c = unhex(forward[i+1])<<4 | unhex(forward[i+2])
			if c == '/' || c == '%' {
				out.WriteString(forward[i : i+3])
			} else {
				out.WriteByte(c)
			}
			i += 2
			continue
		}
		out.WriteByte(c)
	}
	return out.String()
}

// lenientPath returns the path, from its match form, as lenient backends read it. Encoded slashes and backslashes are
// separators there. The rest of a segment after a semicolon is no part of the segment.
func lenientPath(match string) string {
	if !strings.ContainsAny(match, `%;\`) {
		return match
	}
	var out strings.Builder
	out.Grow(len(match))
	parameter := false
	for part := range strings.SplitSeq(strings.NewReplacer("%2F", "/", `\`, "/").Replace(match), "/") {
		name, _, _ := strings.Cut(part, ";")
		if name != "" {
			out.WriteByte('/')
			out.WriteString(name)
		}
		parameter = name == ""
	}
	if parameter {
		out.WriteByte('/')
	}
	return out.String()
}

// cleanQuery escapes characters that no request line may hold. HTTP/2 and HTTP/3 allow a space, which would end the
// target.
func cleanQuery(raw string) string {
	const hexDigits = "0123456789ABCDEF"
	bad := func(c byte) bool { return c <= ' ' || c >= 0x7f || c == '#' }
	at := 0
	for at < len(raw) && !bad(raw[at]) {
		at++
	}
	if at == len(raw) {
		return raw
	}
	out := []byte(raw[:at])
	for ; at < len(raw); at++ {
		if c := raw[at]; bad(c) {
			out = append(out, '%', hexDigits[c>>4], hexDigits[c&15])
		} else {
			out = append(out, c)
		}
	}
	return string(out)
}

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// isPathByte reports whether a path may hold a byte without escaping it: RFC 3986's pchar without escapes, and the
// slash.
func isPathByte(c byte) bool {
	return isUnreserved(c) || c != 0 && strings.IndexByte("!$&'()*+,;=:@/", c) >= 0
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

// maxHost is the greatest length of a host in bytes, as in DNS.
const maxHost = 253

// hostName returns the name in a Host header in lower case, without port and trailing dot. It returns false for text
// that is no valid host.
func hostName(header string) (string, bool) {
	name := header
	if strings.HasPrefix(name, "[") {
		end := strings.IndexByte(name, ']')
		if end < 0 {
			return "", false
		}
		name = name[:end+1]
	} else if colon := strings.IndexByte(name, ':'); colon >= 0 {
		name = name[:colon]
	}
	if rest := header[len(name):]; rest != "" && !isPort(rest[1:]) {
		return "", false
	}
	name = strings.TrimSuffix(name, ".")
	if len(name) > maxHost {
		return "", false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if !isUnreserved(c) && c != '[' && c != ']' && c != ':' || c == '~' {
			return "", false
		}
	}
	return strings.ToLower(name), true
}

// isPort reports whether text is empty, as after "example.org:", or a decimal number.
func isPort(text string) bool {
	return len(text) <= 5 && strings.Trim(text, "0123456789") == ""
}

// wildcardOf returns the wildcard that covers a host: "*" in place of its first label.
func wildcardOf(name string) string {
	_, rest, ok := strings.Cut(name, ".")
	if !ok || rest == "" {
		return ""
	}
	return "*." + rest
}
