// SPDX-License-Identifier: Apache-2.0

// Package expression compiles regular expressions that tenants write. RE2 expressions take time in proportion to the
// length of the text, but also to the size of their program, which a few bytes can make large. 900 bytes of
// "(.*a){99}|", repeated, take 14 s for a path of 8 KB, and 2 MB of memory. So the size is limited.
package expression

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode/utf8"
)

const (
	// MaxLength limits an expression, in bytes.
	MaxLength = 1024
	// MaxSize limits the program of an expression, in instructions. One instruction takes up to 60 ns for each byte of
	// the text, and 160 bytes of memory.
	MaxSize = 2000
	// MaxRequest limits the steps of comparing one request with expressions: half a second of a processor.
	MaxRequest = 8 << 20
	// MaxShared limits the steps of one namespace's expressions for requests that another namespace's routes may serve,
	// so that comparing the longest header or path (32 KiB) with them does not take more than MaxRequest.
	MaxShared = MaxRequest / (32 << 10)
)

// Form says how an expression is compared with a text.
type Form int

const (
	// Anywhere matches a part of a text.
	Anywhere Form = iota
	// Whole matches a whole text.
	Whole
	// Prefix matches the beginning of a text. Its dot matches line breaks, too: a path may hold them, as %0A.
	Prefix
	// PrefixFold does so without regard to case.
	PrefixFold
)

// source returns the RE2 expression for the text of a tenant.
func (f Form) source(text string) string {
	switch f {
	case Whole:
		return "^(?:" + text + ")$"
	case Prefix:
		return "(?s)^(?:" + text + ")"
	case PrefixFold:
		return "(?is)^(?:" + text + ")"
	default:
		return text
	}
}

// Expression is the text of a tenant that is an RE2 expression, and not too large. It is not compiled yet.
type Expression struct {
	text string
	form Form
	// Steps is the approximate size of the program, in instructions. Comparing it with a text takes as many steps for
	// each byte of the text. Literal text that the beginning of a text is compared with has no program.
	Steps int
}

// Source returns the RE2 expression. Two with the same source have the same program.
func (e Expression) Source() string { return e.form.source(e.text) }

// ErrBudget says that whom an expression is charged to has no room for it.
var ErrBudget = errors.New("the expressions of the namespace take too much memory")

// Read reads the text of a tenant, and has charge reserve the expression's memory. There is no other way to an
// Expression, so that none is compiled that is not charged to a namespace. Read returns an error for text that is not
// an RE2 expression by itself, such as one that closes a group that it has not opened, and for one that is too large.
// If charge returns false, the error is ErrBudget.
func Read(text string, form Form, charge func(Expression) bool) error {
	if len(text) > MaxLength {
		return fmt.Errorf("it is longer than %d bytes", MaxLength)
	}
	if _, err := countSteps(text); err != nil {
		return err
	}
	e := Expression{text: text, form: form}
	if !e.literal() {
		var err error
		if e.Steps, err = countSteps(e.Source()); err != nil {
			return err
		}
	}
	if !charge(e) {
		return ErrBudget
	}
	return nil
}

// literal reports whether the expression needs no program. In a program U+FFFD also matches bytes that are no UTF-8.
func (e Expression) literal() bool {
	return (e.form == Prefix || e.form == PrefixFold) && regexp.QuoteMeta(e.text) == e.text &&
		!strings.ContainsRune(e.text, utf8.RuneError)
}

// Pattern is a compiled Expression.
type Pattern struct {
	program *regexp.Regexp // nil for literal text
	literal string
	runes   int // of literal
	fold    bool
	// Steps are those of the Expression.
	Steps int
}

// Compile compiles the expression.
func (e Expression) Compile() (Pattern, error) {
	if e.literal() {
		return Pattern{literal: e.text, runes: utf8.RuneCountInString(e.text), fold: e.form == PrefixFold}, nil
	}
	r, err := regexp.Compile(e.Source())
	if err != nil {
		return Pattern{}, fmt.Errorf("compiling an expression: %w", err)
	}
	return Pattern{program: r, Steps: e.Steps}, nil
}

// MatchString reports whether a text matches.
func (p *Pattern) MatchString(text string) bool {
	switch {
	case p.program != nil:
		return p.program.MatchString(text)
	case p.fold:
		return strings.EqualFold(firstRunes(text, p.runes), p.literal)
	}
	return strings.HasPrefix(text, p.literal)
}

// Groups returns the indexes of an expression's groups in a text, as regexp's FindStringSubmatchIndex does. It returns
// nil for literal text, which has no groups.
func (p *Pattern) Groups(text string) []int {
	if p.program == nil {
		return nil
	}
	return p.program.FindStringSubmatchIndex(text)
}

func firstRunes(text string, runes int) string {
	at := 0
	for ; runes > 0 && at < len(text); runes-- {
		_, n := utf8.DecodeRuneInString(text[at:])
		at += n
	}
	return text[:at]
}

// countSteps returns the approximate size of an expression's program.
func countSteps(source string) (int, error) {
	tree, err := syntax.Parse(source, syntax.Perl)
	if err != nil {
		return 0, err //nolint:wrapcheck // it says what is wrong with the expression
	}
	n := syntaxSize(tree)
	if n > MaxSize {
		return 0, fmt.Errorf("its repetitions and classes make it larger than %d steps, and a request would take too long", MaxSize)
	}
	return n, nil
}

// syntaxSize returns the approximate number of instructions of a tree's program. 4 ranges of a class count as one. The
// result is MaxSize + 1 at most.
func syntaxSize(re *syntax.Regexp) int {
	n := 0
	for _, sub := range re.Sub {
		n += 1 + syntaxSize(sub)
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
