// SPDX-License-Identifier: Apache-2.0

package redact

import (
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// secretWords are pieces of the names of secrets, in any spelling: APIKey, api-key and api_key are one.
var secretWords = []string{
	"password", "passwd", "passphrase", "passcode", "pwd", "secret", "token", "credential", "bearer", "cookie", "signature",
	"jwt", "authoriz", "webhookurl", "dockerconfig", "kubeconfigdata", "presharedkey", "hmac", "keydata", "certificatedata",
	"connectionstring", "connstr", "apikey", "accesskey", "privatekey", "secretkey", "encryptionkey", "signingkey",
	"creds", "fromliteral", "lastapplied", "accountkey", "sharedkey", "clientkey", "masterkey", "authkey", "sshkey",
}

// secretPieces are words that name a secret, or what may hold one, when they are the whole name or a word of it.
var secretPieces = []string{
	"pass", "pw", "auth", "auths", "sig", "pin", "psk", "dsn", "otp", "salt", "sid", "env", "envs", "environ", "environment",
	"value", "values", "args", "arg", "argv", "command", "cmd", "cmdline", "kid",
}

// contentNames name what is masked where it is a list or a map.
var contentNames = []string{"data", "stringdata", "binarydata", "set", "headers", "header", "annotations", "secrets"}

// plainNames have one of the words above and are no secrets.
var plainNames = []string{
	"author", "authority", "certificateauthority", "tokenttl", "secretname", "secrets", "vsecret", "secretref", "tokenreviews",
	"authorizationmode", "imagepullsecrets", "serviceaccounttokens",
}

// IsSecret says whether a value with that name is masked.
func IsSecret(name string) bool {
	pieces := piecesOf(name)
	whole := strings.Join(pieces, "")
	if slices.Contains(plainNames, whole) || strings.HasSuffix(name, ".go") { // a line of source in a stack
		return false
	}
	return slices.ContainsFunc(secretWords, func(word string) bool { return strings.Contains(whole, word) }) ||
		slices.ContainsFunc(pieces, func(piece string) bool { return slices.Contains(secretPieces, piece) })
}

// isContent says whether a list or map with that name is to be masked.
func isContent(name string) bool {
	return slices.Contains(contentNames, strings.Join(piecesOf(name), ""))
}

// piecesOf returns the words of a name, in small letters.
func piecesOf(name string) []string {
	var out []string
	var word strings.Builder
	flush := func() {
		if word.Len() > 0 {
			out = append(out, word.String())
			word.Reset()
		}
	}
	small := false
	for _, r := range name {
		switch {
		case !unicode.IsLetter(r):
			flush()
		case unicode.IsUpper(r) && small:
			flush()
		}
		if unicode.IsLetter(r) {
			word.WriteRune(unicode.ToLower(r))
		}
		small = unicode.IsLower(r)
	}
	flush()
	return out
}

// flagForm is a flag whose value is the next word, also in a list of JSON or Go.
var flagForm = regexp.MustCompile(`((?:^|[\s"'\[({,=])--?([A-Za-z][\w.-]*)["']?(?:,\s*|\s+)["']?)([^\s"'-][^\s"']*|-[^\s"'-][^\s"']*)`)

// maskFlags masks the values of secret flags.
func maskFlags(line string) string {
	if !strings.Contains(line, "-") {
		return line
	}
	return flagForm.ReplaceAllStringFunc(line, func(text string) string {
		found := flagForm.FindStringSubmatch(text)
		if !IsSecret(found[2]) && !strings.HasPrefix(found[2], "set") || strings.HasPrefix(found[3], Mask) { // helm's --set-string
			return text
		}
		return found[1] + Mask
	})
}

// nameForm is a name and what stands between it and its value. Quotes may be escaped several times, as in JSON within
// JSON.
var nameForm = regexp.MustCompile(`([A-Za-z_][\w.-]*)(\\*["'])?\s*(?:=>|:=|=|:)\s*`)

// maskValues masks values behind their names.
func maskValues(line string) string {
	var out strings.Builder
	for line != "" {
		at := nameForm.FindStringSubmatchIndex(line)
		if at == nil {
			break
		}
		name, end := line[at[2]:at[3]], at[1]
		separator := line[at[3]:end]
		if !IsSecret(name) && !(isContent(name) && opensList(line[end:])) {
			// The name may be the value of another one: only what was looked at is passed over.
			out.WriteString(line[:end])
			line = line[end:]
			continue
		}
		out.WriteString(line[:end])
		line = line[end:]
		if length := valueLength(name, separator, line); length > 0 {
			out.WriteString(Mask)
			line = line[length:]
		}
	}
	return out.String() + line
}

// opensList says whether a text begins with a list or map, as JSON or Go write it.
func opensList(text string) bool { return goType.MatchString(text) }

var (
	goType = regexp.MustCompile(`^(&|\*)?(map\[[\w.]*\])?(\[\])?[\w.*\[\]]*[\[{]`)
	// authScheme is the first word of what some headers have.
	authScheme = regexp.MustCompile(`^(?i)(bearer|basic|digest|token|negotiate|aws4-hmac-sha256)\s+`)
	// openingQuote is the quote at the beginning of a value, escaped or not.
	openingQuote = regexp.MustCompile(`^\\*["']`)
)

func valueLength(name, separator, text string) int {
	if rest, ok := strings.CutPrefix(text, Mask); ok && (rest == "" || strings.ContainsRune(" \t,;}])\"'\\", rune(rest[0]))) {
		return 0 // it is masked already
	}
	whole := strings.Join(piecesOf(name), "")
	if strings.HasPrefix(whole, "environ") && strings.HasSuffix(separator, "=") {
		return len(text) // a unit of systemd has several in one line
	}
	if quote := openingQuote.FindString(text); quote != "" {
		return quotedLength(quote, text)
	}
	if opensList(text) {
		return listLength(text)
	}
	sentence := strings.HasSuffix(separator, " ") && !strings.Contains(separator, "=")
	if strings.HasSuffix(separator, ":") || sentence {
		for _, word := range []string{"pass", "pwd", "authoriz", "cookie", "value", "args", "command", "cmd", "env"} {
			if strings.Contains(whole, word) {
				return lineLength(text)
			}
		}
	}
	skip := len(authScheme.FindString(text))
	return skip + wordLength(text[skip:])
}

// wordLength returns the length of a value without quotes: up to a space, or a quote that closes something.
func wordLength(text string) int {
	for i, r := range text {
		if unicode.IsSpace(r) {
			return i
		}
		if rest := text[i+1:]; (r == '"' || r == '\'') && (rest == "" || strings.ContainsRune(" \t,}])", rune(rest[0]))) {
			return i
		}
	}
	return len(text)
}

// lineLength returns the length of a value that has spaces: up to a quote that closes something, or the line's end.
func lineLength(text string) int {
	for i, r := range text {
		if rest := text[i+1:]; (r == '"' || r == '\'') && (rest == "" || strings.ContainsRune(" \t,}])", rune(rest[0]))) {
			return i
		}
	}
	return len(text)
}

// quotedLength returns the length of a value that begins with the quote, which may be escaped.
func quotedLength(quote, text string) int {
	for from := len(quote); ; {
		i := strings.Index(text[from:], quote)
		if i < 0 {
			return len(text)
		}
		end := from + i
		if text[end-1] != '\\' || trailingBackslashes(text[len(quote):end])%2 == 0 && len(quote) == 1 {
			return end + len(quote)
		}
		from = end + 1
	}
}

func trailingBackslashes(text string) int { return len(text) - len(strings.TrimRight(text, `\`)) }

// listLength returns the length of a list or map, with nested ones and quoted texts in it. One that does not end takes
// the whole line.
func listLength(text string) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"', '\'':
			quote := text[i : i+1]
			for start := i; start > 0 && text[start-1] == '\\'; start-- {
				quote = `\` + quote
			}
			i += quotedLength(quote, text[i-len(quote)+1:]) - len(quote)
		case '[', '{', '(':
			depth++
		case ']', '}', ')':
			depth--
			if depth <= 0 && (i+1 == len(text) || !goType.MatchString(text[i+1:])) {
				return i + 1
			}
		}
	}
	return len(text)
}
