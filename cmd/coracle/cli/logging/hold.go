// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"io"
	"sync"
)

// maxHeld bounds what is kept; the oldest lines go first.
const maxHeld = 1000

// hold keeps the libraries' lines back while they are expected to complain: parts that start together cannot reach one
// another at first and say so, hundreds of times, as do parts that stop together. If the start or the stop goes wrong,
// what was kept is written; if it goes well, it is not needed.
type hold struct {
	mu      sync.Mutex
	holding bool
	lines   []string
}

// lastWords are what upstream's kubelet says right before it calls os.Exit, which nothing can intercept
// (pkg/kubelet: kubelet.go, server/server.go, certificate/transport.go, kuberuntime/kuberuntime_manager.go).
var lastWords = map[string]bool{
	"Failed to start cAdvisor":                                                    true,
	"Kubelet failed to get node info":                                             true,
	"Failed to start ContainerManager":                                            true,
	"Failed to initialize internal modules":                                       true,
	"Failed to listen and serve":                                                  true,
	"Failed to serve":                                                             true,
	"Failed to register CRI auth plugins":                                         true,
	"Failed to create listener for podResources endpoint":                         true,
	"Failed to create listener for pods API endpoint":                             true,
	"No valid client certificate is found and the server is responsive, exiting.": true,
	"The currently active client certificate has expired and the server is responsive, exiting.": true,
}

// keep takes a line if lines are being kept.
func (h *hold) keep(line string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.holding {
		return false
	}
	if len(h.lines) == maxHeld {
		h.lines = append(h.lines[:0], h.lines[1:]...)
	}
	h.lines = append(h.lines, line)
	return true
}

// release stops keeping and returns what was kept.
func (h *hold) release() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	lines := h.lines
	h.holding, h.lines = false, nil
	return lines
}

// Hold keeps back what libraries say until [Log.Release]. It does nothing when the user asked for more than the
// default.
func (l *Log) Hold() {
	if !l.quiet {
		return
	}
	l.libraries.hold.mu.Lock()
	defer l.libraries.hold.mu.Unlock()
	l.libraries.hold.holding = true
}

// Release ends Hold, and writes what was kept or forgets it.
func (l *Log) Release(write bool) {
	lines := l.libraries.hold.release()
	if write {
		l.libraries.writeAll(lines)
	}
}

func (h *Handler) writeAll(lines []string) {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	for _, line := range lines {
		_, _ = io.WriteString(h.out.w, line) // there is no better place to complain about a log that cannot be written
	}
}
