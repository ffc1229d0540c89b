// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"time"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/logging"
)

const (
	// holdTimeout is how long a start or a stop may take before the held lines of the libraries are written to the log.
	holdTimeout = 20 * time.Second
	// settleDelay is how long after readiness the lines are still held: parts may not reach one another at first.
	settleDelay = 5 * time.Second
)

// quiet holds the libraries' lines back while the process starts and while it stops, unless that fails or takes long.
type quiet struct {
	log             *logging.Log
	ready, stopping chan struct{} // closed when the process is ready or stops
	result          chan bool     // the value says whether the process ended without an error
	done            chan struct{}
}

// startQuiet starts the goroutine that end stops.
func startQuiet(l *logging.Log) *quiet {
	q := &quiet{log: l, ready: make(chan struct{}), stopping: make(chan struct{}), result: make(chan bool), done: make(chan struct{})}
	l.Hold()
	go q.run()
	return q
}

// setReady and setStopping may be called once each; end ends the goroutine and waits for it.
func (q *quiet) setReady()      { close(q.ready) }
func (q *quiet) setStopping()   { close(q.stopping) }
func (q *quiet) finish(ok bool) { q.result <- ok; <-q.done }

func (q *quiet) run() {
	defer close(q.done)
	ready, stopping := q.ready, q.stopping // nil once it is closed
	timer := time.NewTimer(holdTimeout)
	defer timer.Stop()
	late := func() {
		q.log.Warn("not ready yet; the messages logged so far follow", "after", holdTimeout)
		q.log.Release(true)
	}
	for {
		select {
		case <-ready:
			ready = nil
			late = func() { q.log.Release(false) }
			timer.Reset(settleDelay)
		case <-stopping:
			ready, stopping = nil, nil
			q.log.Hold()
			late = func() {
				q.log.Warn("not stopped yet; the messages logged so far follow", "after", holdTimeout)
				q.log.Release(true)
			}
			timer.Reset(holdTimeout)
		case <-timer.C:
			late()
		case ok := <-q.result:
			q.log.Release(!ok)
			return
		}
	}
}
