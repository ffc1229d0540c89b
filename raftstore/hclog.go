// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// hcLogger passes what raft logs to slog. Raft's information is our detail:
// the store itself says what an operator should know.
type hcLogger struct {
	log     *slog.Logger
	name    string
	implied []any
	said    *said
}

func newHCLog(l *slog.Logger) hclog.Logger {
	return &hcLogger{log: l.With("part", "raft"), said: &said{last: make(map[string]time.Time)}}
}

// repeatAfter is how long the same warning about the same server is held back.
// Raft warns of a server that is away ten times a second.
const repeatAfter = time.Minute

// said remembers which warnings were given.
type said struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// again reports whether a warning was given a short while ago.
func (s *said) again(msg string, args []any) bool {
	key := msg
	for i := 0; i+1 < len(args); i += 2 {
		switch args[i] {
		case "peer", "server-id", "from", "candidate":
			key += fmt.Sprint(" ", args[i+1])
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.last[key]) < repeatAfter {
		return true
	}
	if len(s.last) > 1000 {
		clear(s.last)
	}
	s.last[key] = now
	return false
}

func (h *hcLogger) Log(level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Warn:
		to = slog.LevelWarn
	case hclog.Error:
		to = slog.LevelError
	}
	if to > slog.LevelInfo && h.said.again(msg, args) {
		to = slog.LevelDebug
	}
	h.log.Log(context.Background(), to, msg, args...)
}

func (h *hcLogger) Trace(msg string, args ...any) { h.Log(hclog.Trace, msg, args...) }
func (h *hcLogger) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }
func (h *hcLogger) Info(msg string, args ...any)  { h.Log(hclog.Info, msg, args...) }
func (h *hcLogger) Warn(msg string, args ...any)  { h.Log(hclog.Warn, msg, args...) }
func (h *hcLogger) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }

func (h *hcLogger) enabled(l slog.Level) bool { return h.log.Enabled(context.Background(), l) }

func (h *hcLogger) IsTrace() bool { return h.enabled(slog.LevelDebug) }
func (h *hcLogger) IsDebug() bool { return h.enabled(slog.LevelDebug) }
func (h *hcLogger) IsInfo() bool  { return h.enabled(slog.LevelDebug) }
func (h *hcLogger) IsWarn() bool  { return h.enabled(slog.LevelWarn) }
func (h *hcLogger) IsError() bool { return h.enabled(slog.LevelError) }

func (h *hcLogger) ImpliedArgs() []any { return h.implied }
func (h *hcLogger) Name() string       { return h.name }

func (h *hcLogger) With(args ...any) hclog.Logger {
	return &hcLogger{log: h.log.With(args...), name: h.name, said: h.said,
		implied: append(h.implied[:len(h.implied):len(h.implied)], args...)}
}

func (h *hcLogger) Named(name string) hclog.Logger {
	return &hcLogger{log: h.log, name: name, implied: h.implied, said: h.said}
}

func (h *hcLogger) ResetNamed(name string) hclog.Logger { return h.Named(name) }
func (h *hcLogger) SetLevel(hclog.Level)                {}
func (h *hcLogger) GetLevel() hclog.Level               { return hclog.Debug }

func (h *hcLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(h.log.Handler(), slog.LevelDebug)
}

func (h *hcLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return h.StandardLogger(nil).Writer()
}
