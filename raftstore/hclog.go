// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// hcLogger passes raft's log messages to slog. Raft's level Info becomes Debug: the store itself logs what an operator
// should know.
type hcLogger struct {
	hclog.Logger // logs nothing; for the methods that raft never calls
	log          *slog.Logger
	logged       *loggedWarnings
}

func newHCLog(l *slog.Logger) hclog.Logger {
	return &hcLogger{hclog.NewNullLogger(), l.With("part", "raft"), &loggedWarnings{loggedAt: make(map[string]time.Time)}}
}

// repeatAfter is how long a repeated warning about the same server is logged as Debug only. Raft warns of an
// unresponsive server ten times a second.
const repeatAfter = time.Minute

// loggedWarnings remembers when each warning was last logged.
type loggedWarnings struct {
	mu       sync.Mutex
	loggedAt map[string]time.Time
}

// loggedLately reports whether the same warning was logged less than repeatAfter ago. If not, it remembers the warning.
func (s *loggedWarnings) loggedLately(msg string, args []any) bool {
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
	if now.Sub(s.loggedAt[key]) < repeatAfter {
		return true
	}
	if len(s.loggedAt) > 1000 {
		clear(s.loggedAt)
	}
	s.loggedAt[key] = now
	return false
}

func (h *hcLogger) write(to slog.Level, msg string, args []any) {
	if to > slog.LevelInfo && h.logged.loggedLately(msg, args) {
		to = slog.LevelDebug
	}
	h.log.Log(context.Background(), to, msg, args...)
}

func (h *hcLogger) Debug(msg string, args ...any) { h.write(slog.LevelDebug, msg, args) }
func (h *hcLogger) Info(msg string, args ...any)  { h.write(slog.LevelDebug, msg, args) }
func (h *hcLogger) Warn(msg string, args ...any)  { h.write(slog.LevelWarn, msg, args) }
func (h *hcLogger) Error(msg string, args ...any) { h.write(slog.LevelError, msg, args) }

func (h *hcLogger) With(args ...any) hclog.Logger {
	return &hcLogger{h.Logger, h.log.With(args...), h.logged}
}
