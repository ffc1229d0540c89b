// SPDX-License-Identifier: Apache-2.0

// Package nodeoff keeps the failures of a server's node from the server's store and API (docs/adr/0135).
//
// It decides whether a start of the process runs the node, and when a node that is off is tried again. It owns the
// marker of a node's start and the line of the node in the status while the node is off. It never restarts the process
// itself, and knows nothing of the store: its caller does both.
package nodeoff

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// provenAfter is the time after which a start of the node has succeeded: an end of the process after that is not held
// against the node.
const provenAfter = time.Minute

// retryWaits are the pauses before a node is tried again, after its first failure in a row, its second, and all later
// ones.
var retryWaits = [...]time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute}

// Options describe the node of a server. All fields are required, except Part and Program.
type Options struct {
	// Marker is the path of the marker. It should not outlive a reboot.
	Marker string
	// Boot identifies the boot of the machine. A marker of another boot does not count.
	Boot string
	// Program is the path of the program, which names its version where a machine has several. A marker of another one
	// does not count: a version that was on trial may have failed where this one works.
	Program string
	// GaveUp is the cause with which the node's context ends when a library wants to end the process.
	GaveUp error
	// Off is called when the node does not run, and will not run in this process any more.
	Off func()
	// MayRestart returns an error while a restart of this process would cost the store its quorum.
	MayRestart func(context.Context) error
	// Restart begins a restart of the process, and ends the node's context.
	Restart func()
	Part    *status.Part
	Logger  *slog.Logger
}

// Node runs the node of a server, and turns it off after failures.
type Node struct {
	o Options

	mu         sync.Mutex
	failures   int      // in a row
	trial      *os.File // the open marker from the start of the node until it has failed or is proven; nil otherwise
	keepMarker bool     // the marker is for the next start of the process
}

// New returns a node that Run runs.
func New(o Options) *Node { return &Node{o: o} }

// Run runs the node by run, and returns when ctx is done. If the node failed in the process before this one, or run
// returns before ctx is done, the node is off: Run waits until the node may be tried again, and restarts the process.
func (n *Node) Run(ctx context.Context, run func(context.Context) error) {
	defer n.removeMarker(ctx)
	defer context.AfterFunc(ctx, func() { n.removeMarker(ctx) })() // not after run: a node that is slow to stop has not failed
	var why string
	if n.failures, why = readMarker(n.o.Marker, n.o.Boot, n.o.Program); why == "" {
		n.writeMarker()
		timer := time.AfterFunc(provenAfter, n.succeed)
		err := run(ctx)
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		why = n.endTrial(err)
	}
	n.o.Off()
	n.await(ctx, why)
}

// Ready reports that the node is ready. From then on a kill is not held against the node: an operator or the kernel may
// be its reason, and the next start of the node takes seconds.
func (n *Node) Ready() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.appendToMarker(readyLine)
}

// writeMarker writes the marker. Go's runtime adds to it the text of a panic.
func (n *Node) writeMarker() {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, err := createMarker(n.o.Marker, marker{Boot: n.o.Boot, Program: n.o.Program, Failures: n.failures})
	if f != nil {
		n.trial = f
		err = errors.Join(err, debug.SetCrashOutput(f, debug.CrashOptions{}))
	}
	if err != nil {
		n.o.Logger.Warn("the start of the node could not be recorded; should it end the process, the next start may run the node at once",
			"error", err)
	}
}

// appendToMarker adds text to the marker. Without it, as on a full disk, the marker still counts.
func (n *Node) appendToMarker(text string) {
	if n.trial != nil {
		_, _ = n.trial.WriteString(text)
	}
}

// close ends the trial. The file stays.
func (n *Node) close() {
	if n.trial != nil {
		_ = debug.SetCrashOutput(nil, debug.CrashOptions{}) // without a file it returns no error
		_ = n.trial.Close()                                 // what was written is in the file
		n.trial = nil
	}
}

// succeed ends the trial of a node that has run for long enough.
func (n *Node) succeed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.trial == nil { // it failed just now
		return
	}
	n.close()
	n.failures = 0
	n.remove()
}

// endTrial ends the trial of a node that has failed, and returns the reason.
func (n *Node) endTrial(err error) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		err = errors.New("it ended unexpectedly")
	}
	n.appendToMarker(err.Error())
	n.close()
	n.failures++
	return err.Error()
}

// removeMarker removes the marker when the process ends in order, so that the next start runs the node.
func (n *Node) removeMarker(ctx context.Context) {
	if ctx.Err() == nil { // a panic of run goes through Run's deferred calls
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if errors.Is(context.Cause(ctx), n.o.GaveUp) { // it may be what is left of a node that is off
		n.appendToMarker("a library ended the process (klog.Fatal or klog.Exit); the end of the log of that start says why")
		n.keepMarker = true
	}
	n.close()
	if !n.keepMarker {
		n.remove()
	}
}

func (n *Node) remove() {
	if err := os.Remove(n.o.Marker); err != nil && !errors.Is(err, os.ErrNotExist) {
		n.o.Logger.Warn("the record of the node's start could not be removed; the next start of coracle may leave the node off for a minute",
			"error", err)
	}
}

// await restarts the process when the node may be tried again, and returns when ctx is done. The pauses are measured
// with the monotonic clock: a clock that is set changes nothing.
func (n *Node) await(ctx context.Context, why string) {
	wait, blocked := retryWaits[min(n.failures, len(retryWaits))-1], ""
	for {
		n.o.Logger.Error("this server's node is off; store and API go on, and pods keep running", "reason", why, "next try after", wait,
			"blocked", blocked)
		n.o.Part.Set(status.Failed, "off, while store and API of this server go on and pods keep running: "+why+". "+blocked+
			"coracle restarts by itself to try the node again after "+wait.String()+" ("+time.Now().Add(wait).Format(time.TimeOnly)+
			"); restart coracle to try it at once")
		if !timers.Sleep(ctx, wait) {
			return
		}
		err := n.o.MayRestart(ctx)
		if err == nil {
			err = n.recordTry()
		}
		if err == nil {
			n.o.Logger.Info("coracle restarts to try the node again", "failures", n.failures)
			n.o.Restart()
			<-ctx.Done()
			return
		}
		wait, blocked = retryWaits[0], "It waits: "+err.Error()+". "
	}
}

// recordTry makes the next start of the process run the node.
func (n *Node) recordTry() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, err := createMarker(n.o.Marker, marker{Boot: n.o.Boot, Program: n.o.Program, Failures: n.failures, Try: true})
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	n.keepMarker = err == nil
	return err
}
