// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fromFiles reads the configuration file and its drop-ins. Later files override earlier ones. A missing file is no
// error, unless the user named it and it has no drop-ins.
func fromFiles(path string, named Source, c Command) (values, Problems) {
	vals := values{}
	var problems Problems
	paths := []string{path}
	dropIns, err := DropIns(path)
	if err != nil {
		problems = append(problems, err.Error())
	}
	paths = append(paths, dropIns...)
	for i, p := range paths {
		text, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) && i == 0 && (named == Source{} || len(dropIns) > 0) {
			continue
		}
		if err != nil {
			problems = append(problems, unreadableMessage(p, err, named, i == 0))
			continue
		}
		problems = append(problems, vals.addFile(p, text, c)...)
	}
	return vals, problems
}

// DropIns returns the drop-ins of a configuration file: FILE.d/*.yaml and FILE.d/*.yml, in alphabetical order.
func DropIns(path string) ([]string, error) {
	dir := path + ".d"
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration folder %s cannot be read: %w", dir, causeOf(err))
	}
	var out []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	sort.Strings(out)
	return out, nil
}

func unreadableMessage(path string, err error, named Source, isMain bool) string {
	msg := fmt.Sprintf("configuration file %s cannot be read: %v", path, causeOf(err))
	if isMain && named != (Source{}) {
		msg += " (it was named by " + named.String() + ")"
	}
	if errors.Is(err, fs.ErrPermission) {
		msg += "; run as root, or give this user the right to read it"
	}
	return msg
}

// causeOf removes the operation and the path from an error, because the message names them already.
func causeOf(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// addFile adds the settings of one file, which override those of earlier files.
func (v values) addFile(path string, text []byte, c Command) Problems {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) { // the file is empty, or has comments only
		return nil
	}
	if err != nil {
		return Problems{yamlComplaint(path, err)}
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Problems{path + ": holds more than one YAML document; put further ones into files of their own in " + filepath.Base(path) +
			".d"}
	}
	top := resolveAlias(doc.Content[0])
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return nil
	}
	if top.Kind != yaml.MappingNode {
		return Problems{fmt.Sprintf("%s:%d: settings are written as \"key: value\" lines, this is %s", path, top.Line, kindName(top))}
	}
	var problems Problems
	seen := map[string]int{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, val := top.Content[i], resolveAlias(top.Content[i+1])
		if first, dup := seen[key.Value]; dup {
			problems = append(problems, fmt.Sprintf("%s:%d: %s is already set in line %d", path, key.Line, key.Value, first))
			continue
		}
		seen[key.Value] = key.Line
		if p := v.addKey(path, key, val, c); p != "" {
			problems = append(problems, p)
		}
	}
	return problems
}

// addKey adds one line "key: value". A key that ends with + appends to the values of earlier files.
func (v values) addKey(path string, key, val *yaml.Node, c Command) string {
	name, appends := strings.CutSuffix(key.Value, "+")
	at := fmt.Sprintf("%s:%d: ", path, key.Line)
	s := Lookup(name)
	switch {
	case c == ToolCommand && (s == nil || s.FlagOnly || s.Commands&c == 0):
		return "" // not a setting of this command
	case s == nil && k3sHint(name) != "":
		return at + "unknown key " + strconv.Quote(key.Value) + k3sHint(name)
	case s == nil:
		return at + "unknown key " + strconv.Quote(key.Value) + didYouMean(name, "", settingNames(Table(c)))
	case s.FlagOnly:
		return at + name + " cannot be set in a file; use the flag --" + name + " or the environment variable " + s.EnvName()
	case s.Commands&c == 0 && c == AgentCommand && k3sOfAgents[name] != "":
		return at + name + " has no effect on " + c.String() + ": " + k3sOfAgents[name] + "; remove it here"
	case s.Commands&c == 0:
		return at + name + " is a setting of " + s.Commands.String() + " and has no effect on " + c.String() + "; remove it here"
	case appends && !s.Kind.Repeats():
		return at + name + " holds one value; write it without the +"
	}
	items, problem := itemsFromNode(path, s, key, val)
	if problem != "" {
		return at + problem
	}
	if appends {
		items = append(append([]item{}, v[name]...), items...)
	}
	v[name] = items
	return ""
}

func itemsFromNode(path string, s *Setting, key, val *yaml.Node) ([]item, string) {
	src := func(n *yaml.Node) Source { return Source{File: path, Line: n.Line, Key: s.Name} }
	switch {
	case val.Kind == yaml.ScalarNode && val.Tag == "!!null":
		if s.Kind.Repeats() {
			return []item{}, ""
		}
		return nil, s.Name + " has no value; remove the line to get the default"
	case val.Kind == yaml.ScalarNode && s.Kind == List:
		items := []item{}
		for _, t := range splitList(val.Value) {
			items = append(items, item{t, src(key)})
		}
		return items, ""
	case val.Kind == yaml.ScalarNode:
		return []item{{val.Value, src(key)}}, ""
	case val.Kind == yaml.SequenceNode && s.Kind.Repeats():
		items := []item{}
		for _, n := range val.Content {
			n = resolveAlias(n)
			if n.Kind != yaml.ScalarNode {
				return nil, fmt.Sprintf("%s wants a list of plain values, line %d is %s", s.Name, n.Line, kindName(n))
			}
			items = append(items, item{n.Value, src(n)})
		}
		return items, ""
	case s.Kind.Repeats():
		return nil, s.Name + " wants a list, not " + kindName(val) + `; write each as "- value" on its own line`
	}
	return nil, s.Name + " wants one value, not " + kindName(val)
}

func resolveAlias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return "the plain value " + strconv.Quote(n.Value)
}

var yamlLine = regexp.MustCompile(`line (\d+): (.*)`)

// yamlComplaint rewrites an error of the parser in the form "FILE:LINE: text".
func yamlComplaint(path string, err error) string {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		return path + ":" + m[1] + ": not valid YAML: " + m[2]
	}
	return path + ": not valid YAML: " + msg
}
