// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"maps"
	"strings"
)

// Source says where a value came from.
type Source struct {
	Flag string // name of the flag
	Env  string // name of the environment variable
	File string // path of the file
	Line int    // line in File, from 1
	Key  string // key in File
}

// String names the place as the start of a message about it.
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

// values are the given values by name of the setting. A setting that was not given is absent.
type values map[string][]item

// overlay puts the values of a stronger source over those of a weaker one, whole settings at a time.
func (v values) overlay(stronger values) {
	maps.Copy(v, stronger)
}

// splitList splits at commas; a comma that belongs to a value is written as `\,`. Blank elements are dropped, so
// that an empty value means an empty list.
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

// Problems are all complaints about the settings, in the order of the table. It is never empty as an error.
type Problems []string

func (p Problems) Error() string { return strings.Join(p, "\n") }

func (p Problems) orNil() error {
	if len(p) == 0 {
		return nil
	}
	return p
}
