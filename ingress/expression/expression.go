// SPDX-License-Identifier: Apache-2.0

// Package expression compiles regular expressions that tenants write. RE2 expressions take time in proportion to the
// length of the text, but also to the size of their program, which a few bytes can make large. 900 bytes of
// "(.*a){99}|", repeated, take 14 s for a path of 8 KB, and 2 MB of memory. So the size is limited.
package expression

import (
	"fmt"
	"regexp"
	"regexp/syntax"
)

const (
	// MaxLength limits an expression, in bytes.
	MaxLength = 1024
	// MaxSize limits the program of an expression, in instructions. One instruction takes up to 60 ns for each byte of
	// the text, and 160 bytes of memory.
	MaxSize = 2000
)

// Compile returns an expression with the approximate size of its program. It returns an error for text that is not an
// RE2 expression, and for one that is too large.
func Compile(text string) (*regexp.Regexp, int, error) {
	if len(text) > MaxLength {
		return nil, 0, fmt.Errorf("it is longer than %d bytes", MaxLength)
	}
	return compile(text)
}

func compile(text string) (*regexp.Regexp, int, error) {
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, 0, err
	}
	n := size(tree)
	if n > MaxSize {
		return nil, 0, fmt.Errorf("its repetitions and classes make it larger than %d steps, and a request would take too long", MaxSize)
	}
	r, err := regexp.Compile(text)
	return r, n, err
}

// Prefix compiles an expression that matches the beginning of a text; fold ignores case. Its dot matches line breaks,
// too: a path may hold them, as %0A. Text that is not an expression
// by itself, such as one that closes a group that it has not opened, is an error.
func Prefix(text string, fold bool) (*regexp.Regexp, int, error) {
	if _, _, err := Compile(text); err != nil {
		return nil, 0, err
	}
	whole := "(?s)^(?:" + text + ")"
	if fold {
		whole = "(?i)" + whole
	}
	return compile(whole)
}

// Whole compiles an expression that matches a whole text.
func Whole(text string) (*regexp.Regexp, int, error) {
	if _, _, err := Compile(text); err != nil {
		return nil, 0, err
	}
	return compile("^(?:" + text + ")$")
}

// size returns the approximate number of instructions of a tree's program. 4 ranges of a class count as one. The result
// is MaxSize + 1 at most.
func size(re *syntax.Regexp) int {
	n := 0
	for _, sub := range re.Sub {
		n += 1 + size(sub)
		if n > MaxSize {
			return MaxSize + 1
		}
	}
	switch re.Op {
	case syntax.OpLiteral:
		n += len(re.Rune)
	case syntax.OpCharClass:
		n += 1 + len(re.Rune)/8
	case syntax.OpRepeat:
		n *= max(1, re.Min, re.Max)
	default:
		n++
	}
	return min(n, MaxSize+1)
}
