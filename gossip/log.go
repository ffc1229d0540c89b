// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"strings"
	"sync"

	"github.com/coracle-k8s/coracle/internal/truncate"
)

// libraryLog receives memberlist's log. All of it goes to the debug log, since it repeats itself every second during a
// problem. What users should know is logged once, in other words.
type libraryLog struct {
	logger *slog.Logger

	mu     sync.Mutex
	logged map[string]bool
}

// maxLogged limits how many different warnings are logged: other machines choose the content of some.
const maxLogged = 256

// advice explains some of memberlist's lines. line is a substring of the log line.
var advice = []struct{ line, words string }{
	{"Decrypt packet failed", "ignoring packets from a machine without the cluster's gossip key. " +
		"A machine of this cluster that was off while the key was rotated fetches the new one from a server"},
	{"over TCP but UDP probes failed",
		"a member is reached by TCP and not by UDP: is UDP blocked between the machines on the cluster's port?"},
}

func (l *libraryLog) std() *log.Logger { return log.New(l, "", 0) }

// Write logs a line of memberlist at level Debug. A line that needs advice is logged as a warning, too.
func (l *libraryLog) Write(line []byte) (int, error) {
	text := truncate.Printable(string(bytes.TrimSpace(line)), "") // it quotes what other members sent
	l.logger.Log(context.Background(), slog.LevelDebug, text)
	for _, a := range advice {
		if strings.Contains(text, a.line) {
			l.warnOnce(a.words, "detail", text)
		}
	}
	return len(line), nil
}

// warnOnce logs a warning unless it was logged before.
func (l *libraryLog) warnOnce(words string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.logged == nil {
		l.logged = map[string]bool{}
	}
	if !l.logged[words] && len(l.logged) < maxLogged {
		l.logged[words] = true
		l.logger.Warn(words, args...)
	}
}
