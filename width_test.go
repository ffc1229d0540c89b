// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// codeColumns is how wide a line of code may be, a tab counting as four columns. Tests may have wide tables.
	codeColumns = 140
	// textColumns are those of a text that count at most: who searches for a message has to find it in one piece.
	textColumns = 40
)

// TestCodeIsNotWide: no line of code needs a second look at its end.
func TestCodeIsNotWide(t *testing.T) {
	testenv.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build" || path == "test"):
			return filepath.SkipDir
		case d.IsDir(), filepath.Ext(path) != ".go", strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		texts := longTexts(source)
		for i, line := range strings.Split(string(source), "\n") {
			width := utf8.RuneCountInString(line) + 3*(len(line)-len(strings.TrimLeft(line, "\t"))) - texts[i+1]
			testenv.True(t, width <= codeColumns,
				"%s:%d: the line is %d columns wide without its texts, at most %d", path, i+1, width, codeColumns)
		}
		return nil
	}))
}

// longTexts returns for each line, counted from 1, how many columns of its texts do not count.
func longTexts(source []byte) map[int]int {
	files := token.NewFileSet()
	file := files.AddFile("", -1, len(source))
	var s scanner.Scanner
	s.Init(file, source, nil, 0)
	out := map[int]int{}
	for {
		pos, of, text := s.Scan()
		switch of {
		case token.EOF:
			return out
		case token.STRING:
			for i, part := range strings.Split(text, "\n") {
				out[file.Line(pos)+i] += max(0, utf8.RuneCountInString(part)-textColumns)
			}
		}
	}
}

func TestLongTexts(t *testing.T) {
	long := strings.Repeat("x", textColumns)
	got := longTexts([]byte("package p\n\nvar a, b = \"" + long + "\", \"short\"\nvar c = `\n" + long + "xyz\n`\n"))
	if got[3] != 2 || got[5] != 3 || got[1]+got[4]+got[6] != 0 { // the quotation marks are part of a text
		t.Errorf("%v", got)
	}
}
