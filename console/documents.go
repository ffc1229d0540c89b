// SPDX-License-Identifier: Apache-2.0

package console

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxDocuments limits the objects of one text.
const maxDocuments = 1000

type document struct {
	number int    // counts from 1, without empty documents
	line   int    // the line of the text at which it begins, from 1
	text   string // with its line of hyphens, if it has one

	root   *yaml.Node // for lines of fields; nil until one is asked for
	parsed bool
}

// source is one item of the user's YAML: an object, or the problems that keep it from being one.
type source struct {
	*document
	item     int // the object's index in a List; -1 when the document is the object
	object   anyObject
	problems []problem // why this is no object
}

// problem is one thing that is wrong in a text, in words for users.
type problem struct {
	Line int    `json:"line,omitempty"` // of the whole text, from 1; 0 when no line is known
	Text string `json:"text"`
}

// split returns the documents of a text that are not empty.
func split(text string) []*document {
	var out []*document
	now := &document{line: 1}
	var content strings.Builder
	number := 0
	finish := func() {
		if now.text = content.String(); !isEmpty(now.text) {
			number++
			now.number = number
			out = append(out, now)
		}
		content.Reset()
	}
	line := 0
	for row := range strings.Lines(text) {
		line++
		if rest, found := strings.CutPrefix(row, "---"); found && (rest == "" || strings.ContainsAny(rest[:1], " \t\r\n")) {
			finish()
			now = &document{line: line}
		}
		content.WriteString(row)
	}
	finish()
	return out
}

// isEmpty reports whether a document has only comments, directives and the marks of its beginning and end.
func isEmpty(document string) bool {
	for row := range strings.Lines(document) {
		row, _, _ = strings.Cut(strings.TrimPrefix(row, "---"), "#")
		if row = strings.TrimSpace(row); row != "" && row != "..." && row[0] != '%' {
			return false
		}
	}
	return true
}

// sourcesOf reads a text of several documents. A List is replaced by its items. What is no object has its problems. It
// returns an error when there is no object in the text, or when there are too many.
func sourcesOf(text string) ([]source, error) {
	documents := split(text)
	if len(documents) == 0 {
		return nil, errors.New("there is no object in it")
	}
	tooMany := func(n int) error {
		return fmt.Errorf("there are %d objects in it, and %d at most are taken at once: split the text, or use kubectl apply", n, maxDocuments)
	}
	if len(documents) > maxDocuments {
		return nil, tooMany(len(documents))
	}
	var out []source
	for _, d := range documents {
		out = append(out, d.sources()...)
	}
	if len(out) > maxDocuments {
		return nil, tooMany(len(out))
	}
	return out, nil
}

// sources returns the document's object, or the items of its List.
func (d *document) sources() []source {
	one := source{document: d, item: -1}
	o, err := objectOf(d.text)
	if err != nil {
		one.problems = d.syntaxProblems(err)
		return []source{one}
	}
	items, isList := o["items"].([]any)
	if !isList {
		one.object = o
		return []source{one}
	}
	var out []source
	for i, item := range items {
		s := source{document: d, item: i}
		if s.object, isList = item.(map[string]any); !isList {
			s.problems = []problem{{s.lineOf(""), "this is not an object: it begins with apiVersion, kind and metadata"}}
		}
		out = append(out, s)
	}
	return out
}

var yamlError = regexp.MustCompile(`line (\d+): ([^\n]*)`)

// syntaxProblems converts a parser's lines, which count from the document's beginning.
func (d *document) syntaxProblems(err error) []problem {
	var out []problem
	for _, found := range yamlError.FindAllStringSubmatch(err.Error(), -1) {
		if n, err := strconv.Atoi(found[1]); err == nil {
			out = append(out, problem{d.line + n - 1, "this is not YAML: " + found[2]})
		}
	}
	if out == nil {
		out = []problem{{d.firstLine(), notYAML(err.Error())}}
	}
	return out
}

// notYAML removes the names of parsers from their message.
func notYAML(message string) string {
	return strings.NewReplacer("error converting YAML to JSON: ", "", "yaml: ", "").Replace(message)
}

// firstLine returns the line of the document's first content.
func (d *document) firstLine() int {
	line := d.line
	for row := range strings.Lines(d.text) {
		if !isEmpty(row) {
			return line
		}
		line++
	}
	return d.line
}

// lineOf returns the line of a field, by a path as the API's errors have it, or of the nearest field around it.
func (s *source) lineOf(field string) int {
	_, line, _ := walk(s.node(), 0, s.stepsOf(field))
	if line == 0 {
		return s.firstLine()
	}
	return s.line + line - 1
}

// notText returns the key and the line of the first value of a map that YAML does not read as text. The key is "" when
// there is none.
func (s *source) notText(field string) (key string, line int) {
	n, _, rest := walk(s.node(), 0, s.stepsOf(field))
	if n == nil || rest > 0 || n.Kind != yaml.MappingNode {
		return "", 0
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if value := n.Content[i+1]; value.Kind == yaml.ScalarNode && value.ShortTag() != "!!str" {
			return n.Content[i].Value, s.line + n.Content[i].Line - 1
		}
	}
	return "", 0
}

// node returns the first node of the document, or nil.
func (d *document) node() *yaml.Node {
	if !d.parsed {
		d.parsed = true
		var root yaml.Node
		if yaml.Unmarshal([]byte(d.text), &root) == nil && len(root.Content) > 0 {
			d.root = root.Content[0]
		}
	}
	return d.root
}

func (s *source) stepsOf(field string) []step {
	if s.item < 0 {
		return parseSteps(field)
	}
	return append([]step{{"items", false}, {strconv.Itoa(s.item), true}}, parseSteps(field)...)
}

// step is one step of a path: a field's name, or what is in brackets: an index, keys of an element, a map's key.
type step struct {
	text    string
	bracket bool
}

// parseSteps parses the paths of upstream's validation (spec.containers[0].image, metadata.labels[a.b/c]) and of
// server-side apply (.spec.containers[name="x"].image).
func parseSteps(path string) []step {
	var out []step
	for path != "" {
		switch path[0] {
		case '.':
			path = path[1:]
		case '[':
			inner, rest, _ := strings.Cut(path[1:], "]")
			out, path = append(out, step{inner, true}), rest
		default:
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			out, path = append(out, step{path[:end], false}), path[end:]
		}
	}
	return out
}

// walk follows steps from a node, whose field is at a line. It returns the last node that is there, its line, and the
// number of steps that lead to none.
func walk(n *yaml.Node, line int, steps []step) (last *yaml.Node, at, rest int) {
	if n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n == nil || len(steps) == 0 {
		return n, line, len(steps)
	}
	switch n.Kind {
	case yaml.MappingNode:
		// A key may have dots in it that separate no fields.
		for name, k := steps[0].text, 1; ; k++ {
			for i := 0; i+1 < len(n.Content); i += 2 {
				if key := n.Content[i]; key.Value == strings.Trim(name, `"`) {
					return walk(n.Content[i+1], key.Line, steps[k:])
				}
			}
			if k == len(steps) || steps[k].bracket {
				break
			}
			name += "." + steps[k].text
		}
	case yaml.SequenceNode:
		if steps[0].bracket {
			for i, e := range n.Content {
				if steps[0].isOf(i, e) {
					return walk(e, e.Line, steps[1:])
				}
			}
			break
		}
		// Errors of Go's JSON decoder have no index: the element that has most of the path.
		last, at, rest = n, line, len(steps)
		for _, e := range n.Content {
			if e.Kind != yaml.MappingNode { // an alias may lead back to this list
				continue
			}
			if inner, line, missing := walk(e, e.Line, steps); missing < rest {
				last, at, rest = inner, line, missing
			}
		}
		return last, at, rest
	}
	return n, line, len(steps)
}

// isOf reports whether a step in brackets means the element of a list at an index.
func (s step) isOf(i int, element *yaml.Node) bool {
	if !strings.Contains(s.text, "=") {
		return s.text == strconv.Itoa(i) || s.text == strconv.Quote(element.Value)
	}
	for pair := range strings.SplitSeq(s.text, ",") {
		key, value, _ := strings.Cut(pair, "=")
		for j := 0; j+1 < len(element.Content); j += 2 {
			if element.Content[j].Value == key && element.Content[j+1].Value != strings.Trim(value, `"`) {
				return false
			}
		}
	}
	return true
}

// maxAliased is how many bytes more than four times its own a document may have when its aliases are replaced.
const maxAliased = 64 << 10

// fewAliases refuses a document whose aliases stand for much text: they may write one megabyte a thousand times.
func fewAliases(document string) error {
	var root yaml.Node
	if !strings.Contains(document, "&") || yaml.Unmarshal([]byte(document), &root) != nil {
		return nil // without an anchor there is no alias; who reads the document says what is wrong
	}
	most, sizes := 4*len(document)+maxAliased, map[*yaml.Node]int{}
	var size func(*yaml.Node) int
	size = func(n *yaml.Node) int {
		if n.Alias != nil {
			n = n.Alias
		}
		if _, known := sizes[n]; !known {
			sizes[n] = 0 // of an anchor that contains itself, which no reader takes
			sum := len(n.Value) + 1
			for _, of := range n.Content {
				sum = min(sum+size(of), most+1)
			}
			sizes[n] = sum
		}
		return sizes[n]
	}
	if size(&root) > most {
		return errors.New("its aliases (*name) stand for too much text: write out what they stand for, or use kubectl apply")
	}
	return nil
}
