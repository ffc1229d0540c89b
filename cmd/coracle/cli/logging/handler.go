// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// Keys of attributes that name the component that logs. Their value is written in front of the message.
const (
	ComponentKey = "component"
	loggerKey    = "logger" // the key under which logr passes a logger's name
)

// maxText is the maximum length of a message, and of each value, in a line, in bytes. They may quote what clients send,
// and a single such text may be as large as a log file.
const maxText = 32 << 10

// Handler writes one line for a record: time, level, component, message, attributes.
type Handler struct {
	sink      *sink
	level     slog.Level // the lowest level that is written
	component string
	attrs     string     // already formatted, each with a blank in front
	group     string     // prefix of keys, with its dot
	held      *heldLines // nil when lines are never held back
}

// sink is the destination that several handlers share.
type sink struct {
	mu   sync.Mutex
	w    io.Writer
	time bool

	repeats repeats
}

// Enabled says whether records of this level are written.
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// Handle writes the record.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	if h.sink.repeats.bound(&r) {
		return nil
	}
	var b strings.Builder
	if h.sink.time {
		b.WriteString(r.Time.UTC().Format("2006-01-02T15:04:05.000Z "))
	}
	b.WriteString(levelName(r.Level))
	b.WriteByte(' ')
	component, attrs := h.component, h.attrs
	var tail strings.Builder
	r.Attrs(func(a slog.Attr) bool {
		if name := componentOf(a); name != "" && h.group == "" {
			component = name
		} else {
			appendAttr(&tail, h.group, a)
		}
		return true
	})
	if component != "" {
		b.WriteString(component)
		b.WriteString(": ")
	}
	b.WriteString(oneLine(shortened(r.Message)))
	b.WriteString(attrs)
	b.WriteString(tail.String())
	b.WriteByte('\n')
	if h.held != nil && r.Level >= slog.LevelError && fatalMessages[r.Message] {
		h.writeAll(h.held.release()) // the process is about to end, and held lines may say why
	}
	if h.held != nil && h.held.add(b.String()) {
		return nil
	}
	h.sink.mu.Lock()
	defer h.sink.mu.Unlock()
	_, err := io.WriteString(h.sink.w, b.String())
	return err
}

// WithAttrs returns a handler that adds attributes to each line.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	var b strings.Builder
	for _, a := range attrs {
		if name := componentOf(a); name != "" && h.group == "" {
			c.component = name
			continue
		}
		appendAttr(&b, h.group, a)
	}
	c.attrs += b.String()
	return &c
}

// WithGroup returns a handler that prefixes the keys of later attributes with a name.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.group += name + "."
	return &c
}

func componentOf(a slog.Attr) string {
	if a.Key == ComponentKey || a.Key == loggerKey {
		return a.Value.Resolve().String()
	}
	return ""
}

func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "ERROR"
	case l >= slog.LevelWarn:
		return "WARN "
	case l >= slog.LevelInfo:
		return "INFO "
	}
	return "DEBUG"
}

func appendAttr(b *strings.Builder, group string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range v.Group() {
			appendAttr(b, group, inner)
		}
		return
	}
	if a.Key == "" {
		return
	}
	b.WriteByte(' ')
	b.WriteString(group)
	b.WriteString(a.Key)
	b.WriteByte('=')
	b.WriteString(quoteValue(shortened(valueText(v))))
}

func valueText(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().UTC().Format(time.RFC3339Nano)
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			return err.Error()
		}
	}
	return v.String()
}

// shortened shortens a long text at a character boundary and appends its original length.
func shortened(s string) string {
	if len(s) <= maxText {
		return s
	}
	end := maxText
	for end > maxText-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "… (" + strconv.Itoa(len(s)) + " bytes in all)"
}

func quoteValue(s string) string {
	special := func(r rune) bool { return r == ' ' || r == '=' || r == '"' || !strconv.IsPrint(r) }
	if s == "" || strings.ContainsFunc(s, special) {
		return strconv.Quote(s)
	}
	return s
}

// oneLine puts a message with line breaks, such as a stack trace, on one line that can still be read.
func oneLine(s string) string {
	s = strings.TrimRight(s, "\n")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t' {
			return '?' // a terminal would obey a control character
		}
		return r
	}, s)
	if !strings.ContainsAny(s, "\n\r") {
		return s
	}
	return strings.NewReplacer("\r\n", ` \ `, "\n", ` \ `, "\r", " ").Replace(s)
}
