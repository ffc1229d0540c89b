// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/sirupsen/logrus"
)

// maxLine is the length at which an unfinished line is written anyway, in bytes.
const maxLine = 64 << 10

func klogLogger(h *Handler) logr.Logger { return logr.FromSlogHandler(h) }

// handleKlogLine logs a line of klog's unstructured calls: "W1120 08:51:15.123456   1234 file.go:12] message". Only the
// first letter distinguishes a warning from information: through logr both would be logged as information.
func handleKlogLine(h *Handler, b []byte) {
	text := strings.TrimRight(string(b), "\n")
	if text == "" {
		return
	}
	level := slog.LevelInfo
	switch text[0] {
	case 'W':
		level = slog.LevelWarn
	case 'E':
		level = slog.LevelError
	case 'F': // the process is about to end, and held lines may say why
		level = slog.LevelError
		h.writeAll(h.held.release())
	}
	header, message, ok := strings.Cut(text, "] ")
	if !ok || strings.ContainsAny(header, "\n") {
		message = text
	}
	switch {
	case strings.HasPrefix(message, "Skipping API "): // klog warns so for each API version that is off by default
		level = slog.LevelInfo
	case strings.Contains(message, " grpc: addrConn.createTransport failed to connect to "):
		// About seven such lines a second appear while another server is off. The store logs that itself.
		level = slog.LevelInfo
	}
	writeRecord(h, level, message)
}

func writeRecord(h *Handler, level slog.Level, message string, attrs ...slog.Attr) {
	ctx := context.Background()
	if !h.Enabled(ctx, level) {
		return
	}
	r := slog.NewRecord(time.Now(), level, message, 0)
	r.AddAttrs(attrs...)
	_ = h.Handle(ctx, r) // nothing can report an error of the log itself
}

// logrusHook logs the messages of containerd and of other libraries that use logrus' standard logger.
type logrusHook struct{ h *Handler }

func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

func (k logrusHook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		level = slog.LevelError
	case logrus.WarnLevel:
		level = slog.LevelWarn
	case logrus.InfoLevel:
		level = slog.LevelInfo
	}
	attrs := make([]slog.Attr, 0, len(e.Data)+1)
	attrs = append(attrs, slog.String(ComponentKey, logrusComponent()))
	for key, v := range e.Data {
		attrs = append(attrs, slog.Any(key, v))
	}
	writeRecord(k.h, level, e.Message, attrs...)
	return nil
}

// logrusComponent names the component whose message the hook gets, by the first caller outside logrus. A message of the
// IPVS library belongs to the Service proxy. All others belong to containerd.
func logrusComponent() string {
	var callers [32]uintptr
	frames := runtime.CallersFrames(callers[:runtime.Callers(3, callers[:])])
	for {
		f, more := frames.Next()
		switch {
		case strings.HasPrefix(f.Function, "github.com/moby/ipvs"):
			return "proxy"
		case !more || !strings.HasPrefix(f.Function, "github.com/sirupsen/logrus."):
			return "containerd"
		}
	}
}

// newLineWriter returns a writer that logs each written line. A level in brackets at the start of a line, as CoreDNS
// and memberlist write it, is the line's level.
func newLineWriter(h *Handler, level slog.Level) io.Writer { return &lineWriter{h: h, level: level} }

type lineWriter struct {
	h           *Handler
	level       slog.Level
	mu          sync.Mutex
	partialLine []byte
}

func (w *lineWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.partialLine = append(w.partialLine, b...)
	for {
		i := bytes.IndexByte(w.partialLine, '\n')
		if i < 0 {
			if len(w.partialLine) < maxLine {
				return len(b), nil
			}
			i = len(w.partialLine) - 1
		}
		level, message := bracketLevel(string(w.partialLine[:i]), w.level)
		if message != "" {
			writeRecord(w.h, level, message)
		}
		w.partialLine = append(w.partialLine[:0], w.partialLine[i+1:]...)
	}
}

var bracketLevels = map[string]slog.Level{
	"DEBUG": slog.LevelDebug, "INFO": slog.LevelInfo, "NOTICE": slog.LevelInfo, "WARN": slog.LevelWarn, "WARNING": slog.LevelWarn,
	"ERR": slog.LevelError, "ERROR": slog.LevelError, "FATAL": slog.LevelError, "PANIC": slog.LevelError,
}

func bracketLevel(line string, fallback slog.Level) (slog.Level, string) {
	line = strings.TrimSpace(line)
	if rest, ok := strings.CutPrefix(line, "["); ok {
		if word, message, ok := strings.Cut(rest, "]"); ok {
			if level, ok := bracketLevels[word]; ok {
				return level, strings.TrimSpace(message)
			}
		}
	}
	return fallback, line
}
