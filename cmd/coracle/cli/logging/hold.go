// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"io"
	"sync"
)

// maxHeld is the maximum number of held lines. Beyond it, the oldest are dropped.
const maxHeld = 1000

// heldLines keeps the libraries' lines back while errors are expected. Parts that start at the same time cannot reach
// one another at first, and log that hundreds of times. So do parts that stop at the same time. If the start or the
// stop fails, the held lines are written. If it succeeds, they are dropped.
type heldLines struct {
	mu      sync.Mutex
	holding bool
	lines   []string
}

// fatalMessages are the messages that upstream's kubelet logs right before it calls os.Exit, which cannot be
// intercepted (pkg/kubelet: kubelet.go, server/server.go, certificate/transport.go,
// kuberuntime/kuberuntime_manager.go).
var fatalMessages = map[string]bool{
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

// add holds a line back, if lines are being held, and says whether it did.
func (h *heldLines) add(line string) bool {
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

// release stops holding and returns the held lines.
func (h *heldLines) release() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	lines := h.lines
	h.holding, h.lines = false, nil
	return lines
}

// Hold holds back the lines of libraries until [Log.Release]. It does nothing when the user asked for more than the
// default.
func (l *Log) Hold() {
	if !l.quiet {
		return
	}
	l.libraries.held.mu.Lock()
	defer l.libraries.held.mu.Unlock()
	l.libraries.held.holding = true
}

// Release ends Hold. It writes the held lines or drops them.
func (l *Log) Release(write bool) {
	lines := l.libraries.held.release()
	if write {
		l.libraries.writeAll(lines)
	}
}

func (h *Handler) writeAll(lines []string) {
	h.sink.mu.Lock()
	defer h.sink.mu.Unlock()
	for _, line := range lines {
		_, _ = io.WriteString(h.sink.w, line) // nothing can report an error of the log itself
	}
}
