// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/internal/convert"
)

type object struct {
	*unstructured.Unstructured
	line int // first line of its document, from 1
}

// ref identifies an object in the cluster.
type ref struct {
	schema.GroupVersionKind
	Namespace, Name string
}

func (r ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// key identifies an object, whatever the version of its API.
func (r ref) key() ref {
	r.Version = ""
	return r
}

func (o object) ref() ref {
	return ref{GroupVersionKind: o.GroupVersionKind(), Namespace: o.GetNamespace(), Name: o.GetName()}
}

func refsOf(objects []object) []ref {
	return convert.Slice(objects, object.ref)
}

type document struct {
	text []byte
	line int // its first line, from 1
}

// split divides a file at its document separators.
func split(data []byte) []document {
	var docs []document
	now := document{line: 1}
	line := 0
	for text := range bytes.Lines(data) {
		line++
		trimmed := bytes.TrimRight(text, " \t\r\n")
		if bytes.Equal(trimmed, []byte("---")) || bytes.HasPrefix(trimmed, []byte("--- #")) {
			docs = append(docs, now)
			now = document{line: line + 1}
			continue
		}
		now.text = append(now.text, text...)
	}
	return append(docs, now)
}

var yamlLine = regexp.MustCompile(`line (\d+): ?`)

// parse returns all objects of a file in the order in which they are applied. Its errors begin with FILE:LINE.
func parse(name string, data []byte) ([]object, error) {
	objects := []object{} // not nil: an empty file is valid
	for _, d := range split(data) {
		found, err := d.objects(name)
		if err != nil {
			return nil, err
		}
		objects = append(objects, found...)
	}
	lines := map[ref]int{}
	for _, o := range objects {
		key := o.ref().key()
		if before, twice := lines[key]; twice {
			return nil, fmt.Errorf("%s:%d: %s is in this file twice, at line %d too", name, o.line, o.ref(), before)
		}
		lines[key] = o.line
	}
	slices.SortStableFunc(objects, func(a, b object) int { return applyRank(a) - applyRank(b) })
	return objects, nil
}

func (d document) objects(name string) ([]object, error) {
	var content map[string]any
	asJSON, err := yaml.YAMLToJSONStrict(d.text)
	if err == nil {
		err = yaml.Unmarshal(asJSON, &content)
	}
	if err != nil {
		return nil, d.syntaxError(name, err)
	}
	if content == nil {
		return nil, nil // only comments
	}
	u := &unstructured.Unstructured{Object: content}
	line := d.firstLine()
	if err := check(u); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", name, line, err)
	}
	if !u.IsList() {
		return []object{{u, line}}, nil
	}
	var out []object
	err = u.EachListItem(func(item runtime.Object) error {
		o, ok := item.(*unstructured.Unstructured)
		if !ok {
			return fmt.Errorf("an item is a %T", item)
		}
		out = append(out, object{o, line})
		return check(o)
	})
	if err != nil {
		return nil, fmt.Errorf("%s:%d: in the %s: %w", name, line, u.GetKind(), err)
	}
	return out, nil
}

// firstLine returns the line of the document's first content.
func (d document) firstLine() int {
	line := d.line
	for text := range bytes.Lines(d.text) {
		if t := bytes.TrimSpace(text); len(t) > 0 && t[0] != '#' {
			return line
		}
		line++
	}
	return d.line
}

// syntaxError converts a parser's line, which counts from the document's beginning, into a line of the file.
func (d document) syntaxError(name string, err error) error {
	line, what := d.firstLine(), err.Error()
	if m := yamlLine.FindStringSubmatch(what); m != nil {
		if n, convErr := strconv.Atoi(m[1]); convErr == nil {
			line = d.line + n - 1
		}
		what = strings.Replace(what, m[0], "", 1)
	}
	what = strings.NewReplacer("error converting YAML to JSON: ", "", "yaml: ", "", "unmarshal errors:\n  ", "",
		"error unmarshaling JSON: ", "").Replace(what)
	return fmt.Errorf("%s:%d: %s", name, line, what)
}

// check returns an error if an object lacks a required field.
func check(u *unstructured.Unstructured) error {
	switch {
	case u.GetAPIVersion() == "":
		return errors.New("apiVersion is missing")
	case u.GetKind() == "":
		return errors.New("kind is missing")
	case u.IsList():
		return nil
	case u.GetName() == "" && u.GetGenerateName() != "":
		return errors.New("generateName makes another object each time; give a name")
	case u.GetName() == "":
		return errors.New("metadata.name is missing")
	}
	if _, err := schema.ParseGroupVersion(u.GetAPIVersion()); err != nil {
		return fmt.Errorf("apiVersion: %w", err)
	}
	return nil
}

const (
	rankNamespace = iota
	rankCRD
	rankOther
)

// applyRank orders objects so that others can depend on earlier ones.
func applyRank(o object) int {
	switch o.GroupVersionKind().GroupKind() {
	case schema.GroupKind{Kind: "Namespace"}:
		return rankNamespace
	case schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}:
		return rankCRD
	}
	return rankOther
}
