// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// pageColumns is how wide a line of text in a page may be.
const pageColumns = 120

// listItem is the beginning of an item of a list, with its indentation.
var listItem = regexp.MustCompile(`^( *)([-*+]|[0-9]+[.)]) +`)

// unwrapped are the beginnings of lines that stay in one piece: rows of tables, messages, which a user searches for,
// comments that tests compare, and pictures.
var unwrapped = regexp.MustCompile(`^ *(\||>|<!--|!\[)`)

// TestPagesAreNotWide: the text of README.md and docs is wrapped. Code is left out, and what cannot be wrapped: the
// target of a link, and a word that is wider than a line.
func TestPagesAreNotWide(t *testing.T) {
	check := func(path string) {
		lines := strings.Split(string(testenv.Must(os.ReadFile(path))(t)), "\n")
		for _, i := range wideLines(lines) {
			t.Errorf("%s:%d: the line is %d columns wide, at most %d", path, i+1, utf8.RuneCountInString(lines[i]), pageColumns)
		}
	}
	check("README.md")
	testenv.NoError(t, filepath.WalkDir("docs", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) == ".md" {
			check(path)
		}
		return err
	}))
}

// wideLines returns which lines of text are too wide, counted from 0.
func wideLines(lines []string) []int {
	var wide []int
	fence := ""   // that the code block began with which the line is in
	margin := 0   // of the text of the list item that the line is in
	after := true // an empty line, after which an indented one is code
	for i, line := range lines {
		text := strings.TrimLeft(line, " ")
		indent := len(line) - len(text)
		switch {
		case fence != "":
			if strings.HasPrefix(text, fence) {
				fence = ""
			}
			continue
		case strings.HasPrefix(text, "```"), strings.HasPrefix(text, "~~~"):
			fence = text[:3]
			continue
		case text == "":
			after = true
			continue
		}
		if item := listItem.FindString(line); item != "" && indent < margin+4 {
			margin = len(item)
		} else if indent < margin && after {
			margin = 0
		}
		code := after && indent >= margin+4
		after = code
		if code || unwrapped.MatchString(line) || utf8.RuneCountInString(line) <= pageColumns {
			continue
		}
		if words := strings.Fields(listItem.ReplaceAllString(line, "")); len(words) > 1 && !strings.HasPrefix(text, "[") || len(words) > 2 {
			wide = append(wide, i)
		}
	}
	return wide
}

func TestWideLines(t *testing.T) {
	long := strings.Repeat("wide ", pageColumns/5)
	for page, want := range map[string][]int{
		"short\n" + long + "x":                   {1},
		"| " + long + " |":                       nil,
		"text\n\n    " + long:                    nil,
		"text\n    " + long:                      {1},
		"```\n" + long + "x\n```\n" + long + "x": {3},
		"- item\n\n  " + long:                    {2},
		"- item\n\n      " + long:                nil,
		"- " + long:                              {0},
		"text\n\n    code\n    " + long + "\n\n" + long + "x": {5},
		strings.Repeat("x", 200):                              nil,
		"[a]: " + strings.Repeat("x", 200):                    nil,
	} {
		testenv.True(t, slices.Equal(wideLines(strings.Split(page, "\n")), want), "wide lines of %q are %v, want %v", page,
			wideLines(strings.Split(page, "\n")), want)
	}
}
