// SPDX-License-Identifier: Apache-2.0

// Package redact masks secrets in text that leaves a machine, such as the logs in the archive of coracle debug collect.
//
// It knows secrets by their form (keys in PEM, tokens, passwords in URLs), by the name before them (password=…,
// "token":"…", Authorization: …), and by their value, where the caller knows it. It rather masks too much than too
// little: values of environment variables, arguments and values of Helm are masked whatever they are. A secret in a
// sentence, without a name and of no known form, it cannot know.
package redact

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"regexp"
	"strings"
)

// Mask is what stands in the place of a secret.
const Mask = "***"

// minLength is the length, in bytes, from which a known value is masked wherever it occurs. Shorter ones are words that
// other texts have too.
const minLength = 6

// Masker masks secrets. Its zero value knows no values.
type Masker struct{ replacer *strings.Replacer }

// New returns a masker that also masks the given values, wherever they occur and however they are quoted.
func New(values ...string) *Masker {
	var pairs []string
	for _, v := range values {
		if v = strings.TrimSpace(v); len(v) < minLength {
			continue
		}
		forms := []string{v, base64.StdEncoding.EncodeToString([]byte(v)), base64.RawURLEncoding.EncodeToString([]byte(v)),
			url.QueryEscape(v), url.PathEscape(v)}
		if quoted, err := json.Marshal(v); err == nil {
			forms = append(forms, string(quoted[1:len(quoted)-1]))
		}
		for _, form := range forms {
			pairs = append(pairs, form, Mask)
		}
	}
	return &Masker{strings.NewReplacer(pairs...)}
}

// Text returns the text with a mask in the place of each secret. The number of lines may become smaller.
func (m *Masker) Text(text string) string {
	if m.replacer != nil {
		text = m.replacer.Replace(text)
	}
	text = maskKeys(text)
	var out strings.Builder
	var block yamlBlock
	for line := range strings.Lines(text) {
		body, end := strings.CutSuffix(line, "\n")
		if !block.hides(body) {
			body = maskLine(body)
			out.WriteString(body)
			if end {
				out.WriteByte('\n')
			}
		}
	}
	return out.String()
}

const (
	keyBegins, keyEnds = "-----BEGIN ", "-----END "
	// keyLength is the maximum length of a key with what a log puts before each of its lines, in bytes.
	keyLength = 64 << 10
)

// maskKeys masks what PEM encodes, in one line or in several. Of a text that begins within a key it removes the rest of
// the key. A key that does not end is left to maskLine, which masks its long lines.
func maskKeys(text string) string {
	var out strings.Builder
	if end := strings.Index(text, keyEnds); end >= 0 && !strings.Contains(text[:end], keyBegins) {
		if end < keyLength {
			out.WriteString(Mask)
		} else {
			out.WriteString(text[:end-keyLength] + Mask)
		}
		text = text[afterMarker(text, end+len(keyEnds)):]
	}
	for {
		begin := strings.Index(text, keyBegins)
		if begin < 0 {
			break
		}
		length := strings.Index(text[begin:min(len(text), begin+keyLength)], keyEnds)
		if length < 0 {
			out.WriteString(text[:begin+len(keyBegins)])
			text = text[begin+len(keyBegins):]
			continue
		}
		out.WriteString(text[:begin] + Mask)
		text = text[afterMarker(text, begin+length+len(keyEnds)):]
	}
	return out.String() + text
}

// afterMarker returns where the dashes end that close a marker, of which the name begins at from.
func afterMarker(text string, from int) int {
	line := text[from:]
	if end := strings.IndexByte(line, '\n'); end >= 0 {
		line = line[:end]
	}
	if dashes := strings.Index(line, "-----"); dashes >= 0 {
		return from + dashes + len("-----")
	}
	return from + len(line)
}

// logPrefix matches the text that the journal puts before a line.
var logPrefix = regexp.MustCompile(`^\S+ \S+ \S+\[\d+\]: `)

// opensBlock is a line behind which the value of a key of YAML or JSON follows in lines of its own.
var opensBlock = regexp.MustCompile(`^([\s-]*)"?([A-Za-z_][\w.-]*)"?:\s*([|>][-+0-9]*|[\[{])?\s*$`)

// yamlBlock is the value of a secret key of YAML or JSON that has lines of its own.
type yamlBlock struct {
	open   bool
	indent int
}

// hides says whether the line belongs to such a value. A line that begins one does not.
func (b *yamlBlock) hides(line string) bool {
	line = line[len(logPrefix.FindString(line)):]
	text := strings.TrimLeft(line, " \t")
	indent := len(line) - len(text)
	if b.open && (text == "" || indent > b.indent || indent == b.indent && strings.HasPrefix(text, "- ")) {
		return true
	}
	b.open = false
	if found := opensBlock.FindStringSubmatch(line); found != nil && (IsSecret(found[2]) || isContent(found[2])) {
		*b = yamlBlock{true, len(found[1])}
	}
	return false
}

// maskRule masks one form of secrets in a line that has the given text: most lines have not, and searching for it is
// much faster than the form.
type maskRule struct {
	contains    string
	form        *regexp.Regexp
	replacement string
}

var maskRules = []maskRule{
	{"", regexp.MustCompile(`(?i)\b(bearer|basic|negotiate)(["']?[ \t]+["']?)[A-Za-z0-9+/=._~-]{4,}`), "$1$2" + Mask},
	{"=", regexp.MustCompile(`(?i)\b(digest|aws4-hmac-sha256) \w+=.*`), "$1 " + Mask},
	{"eyJ", regexp.MustCompile(`\beyJ[\w-]{6,}\.[\w-]+(\.[\w-]*)*`), Mask},
	{"::", regexp.MustCompile(`\b(CRC1|K10)[0-9a-f]{8,}::[^\s"']+`), Mask},
	{".", regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`), Mask},
	{"AGE-", regexp.MustCompile(`\bAGE-SECRET-KEY-1[A-Z0-9]+`), Mask},
	{"A", regexp.MustCompile(`\b(AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}\b`), Mask},
	{"", regexp.MustCompile(`\b(gh[pousr]_|github_pat_|glpat-|xox[a-z]-|[sr]k_live_|hvs\.|dckr_pat_|npm_|AIza)[\w-]{8,}`), Mask},
	{"/", regexp.MustCompile(`(hooks\.slack\.com/|discord\.com/api/webhooks/|api\.telegram\.org/bot)[^\s"']+`), "$1" + Mask},
	{"-", regexp.MustCompile(`(\s-u|--user|--proxy-user)([ =]["']?)[^\s"':]+:[^\s"']+`), "$1$2" + Mask},
	{"", regexp.MustCompile(`(?i)\b(password|passwd|passphrase|token)( is| was)? ["'][^"']+["']`), "$1$2 " + Mask},
	{" ", regexp.MustCompile(`(?i)\b(password|passwd|passphrase|token|secret)( is| was) [^\s"'*]\S*`), "$1$2 " + Mask},
	{" ", regexp.MustCompile(`(?i)\b((?:api|access|private|secret|encryption|signing|account) key(?: is|:| =|=))\s*[^\s*]\S*`), "$1 " + Mask},
	{"<", regexp.MustCompile(`(?i)(<[\w:-]*(?:pass|pwd|secret|token|key|credential)[\w:-]*>)[^<]+`), "$1" + Mask},
	{"%3", regexp.MustCompile(`(?i)((?:pass|password|passwd|pwd|secret|token|key|credential|signature)%3[da])[^\s"'&]+`), "$1" + Mask},
	{" -", regexp.MustCompile(`(\b(?:mysql|mariadb|sshpass|redis-cli|docker|podman|nerdctl)\w*\b.*?\s-[pa] ?)[^\s*-]\S*`), "$1" + Mask},
	{"$", regexp.MustCompile(`\$(2[abxy]?|5|6|7|y|apr1|argon2\w*)\$[^\s"':]+`), Mask},
}

func maskLine(line string) string {
	line = maskUserinfo(line)
	for _, r := range maskRules {
		if strings.Contains(line, r.contains) {
			line = r.form.ReplaceAllString(line, r.replacement)
		}
	}
	line = maskFlags(line)
	line = maskValues(line)
	return encodedWord.ReplaceAllStringFunc(line, func(word string) string {
		if isEncoded(word) {
			return Mask
		}
		return word
	})
}

var (
	urlForm = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>` + "`" + `]+`)
	// dsnForm is a user, a password and a host without a scheme.
	dsnForm      = regexp.MustCompile(`([\w.+%-]+):[^\s"'@/][^\s"']*@([\w.\[(-]+)`)
	digestPrefix = regexp.MustCompile(`^sha(256|512)`)
)

// maskUserinfo masks user and password before a host. A password may have slashes and at signs.
func maskUserinfo(line string) string {
	if !strings.Contains(line, "@") {
		return line
	}
	line = urlForm.ReplaceAllStringFunc(line, func(address string) string {
		scheme, rest, _ := strings.Cut(address, "://")
		for at := strings.LastIndexByte(rest, '@'); at >= 0; at = strings.LastIndexByte(rest[:at], '@') {
			if !digestPrefix.MatchString(rest[at+1:]) {
				return scheme + "://" + Mask + rest[at:]
			}
		}
		return address
	})
	return dsnForm.ReplaceAllStringFunc(line, func(text string) string {
		found := dsnForm.FindStringSubmatch(text)
		if digestPrefix.MatchString(found[2]) || found[1] == Mask {
			return text
		}
		return found[1] + ":" + Mask + "@" + found[2]
	})
}

// encodedWord is a word that base64 or a random string may be.
var encodedWord = regexp.MustCompile(`[A-Za-z0-9+/_-]{12,}={1,2}|[A-Za-z0-9+/_-]{32,}`)

// isEncoded says whether a word has capitals, small letters and digits in one piece, as an encoded key has, and as a
// path, a name or a digest has not.
func isEncoded(word string) bool {
	for piece := range strings.SplitSeq(word, "/") {
		mixed := strings.ToLower(piece) != piece && strings.ToUpper(piece) != piece
		if len(piece) >= 10 && mixed && strings.ContainsAny(piece, "0123456789") {
			return true
		}
	}
	// Encoded text may lack digits; its padding shows it.
	return strings.HasSuffix(word, "=") && len(word)%4 == 0
}
