// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"maps"
	"strings"
)

// Source is the source of a value.
type Source struct {
	Flag string // name of the flag
	Env  string // name of the environment variable
	File string // path of the file
	Line int    // line in File, from 1
	Key  string // key in File
}

// String names the source, to begin a message about it.
func (s Source) String() string {
	switch {
	case s.File != "":
		return fmt.Sprintf("%s:%d: %s", s.File, s.Line, s.Key)
	case s.Env != "":
		return s.Env
	case s.Flag != "":
		return "--" + s.Flag
	}
	return "default"
}

// item is one value, or one element of a list, as text.
type item struct {
	text string
	src  Source
}

// values maps the name of each given setting to its values. A setting that was not given is absent.
type values map[string][]item

// overlay replaces settings by those of a stronger source. It replaces a list as a whole.
func (v values) overlay(stronger values) {
	maps.Copy(v, stronger)
}

// splitList splits a text at commas. A comma inside of a value is written as `\,`. Blank elements are dropped, so an
// empty text is an empty list.
func splitList(text string) []string {
	var out []string
	var cur strings.Builder
	flush := func() {
		if t := strings.TrimSpace(cur.String()); t != "" {
			out = append(out, t)
		}
		cur.Reset()
	}
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text) && text[i+1] == ',':
			cur.WriteByte(',')
			i++
		case text[i] == ',':
			flush()
		default:
			cur.WriteByte(text[i])
		}
	}
	flush()
	return out
}

// Problems are the errors of all settings, in the order of the table. It is never empty when it is used as an error.
type Problems []string

func (p Problems) Error() string { return strings.Join(p, "\n") }

func (p Problems) orNil() error {
	if len(p) == 0 {
		return nil
	}
	return p
}
