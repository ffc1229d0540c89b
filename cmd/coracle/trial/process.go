// SPDX-License-Identifier: Apache-2.0

package trial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// SoakVariable is the environment variable that sets Gate.Soak, as a Go duration. It is for tests.
const SoakVariable = "CORACLE_TRIAL_SOAK"

const (
	// eventRetry is the pause between two attempts to write an Event, and reportWithin how long that is tried.
	eventRetry, reportWithin = 5 * time.Second, 10 * time.Minute
)

// Process is a running server or agent whose program lies in a slot.
type Process struct {
	Versions *slots.Versions
	// Digest and Version are those of the program that runs. Node is the name of the machine's node.
	Digest, Version, Node string
	Observer              Observer
	// Problems are what the program does not accept of the settings of now, if it runs again with those from before.
	Problems []string
	// Current, when set, is called at the start, and when the version was committed: what the current version's slot
	// brings takes effect.
	Current func()
	// End ends the process, so that the starter runs the version before this one.
	End    func()
	Logger *slog.Logger
}

// Start prunes the versions. It then does what follows from the program's state until the returned function is called:
// the gate if it is on trial, and the report if it is the version to which a candidate's refusal led back. Otherwise
// there is nothing to do, and nothing stays.
func (p Process) Start(ctx context.Context) (stop func()) {
	s, err := p.Versions.State()
	if err != nil {
		p.Logger.Warn("the versions of coracle on this machine cannot be read", "error", err)
		return func() {}
	}
	if len(p.Problems) == 0 { // else the settings from before are among what would be removed
		p.prune()
	}
	if p.Current != nil {
		p.Current()
	}
	var work func(context.Context)
	switch {
	case s.Trial == p.Digest:
		work = func(ctx context.Context) { p.runGate(ctx, s) }
	case s.Current == p.Digest && s.Refused != nil && !s.Refused.Reported:
		work = func(ctx context.Context) { p.reportRefusal(ctx, *s.Refused) }
	default:
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var working sync.WaitGroup
	working.Go(func() { work(ctx) })
	return func() {
		cancel()
		working.Wait()
	}
}

// prune removes versions that are not used, unless an upgrade is being prepared, which does so itself.
func (p Process) prune() {
	unlock, err := p.Versions.Lock()
	if err == nil {
		defer unlock()
		err = bundle.KeepAccepted(p.Versions, bundle.Accepted{})
	}
	if err == nil {
		err = p.Versions.Prune()
	}
	if err != nil && !errors.Is(err, slots.ErrBusy) {
		p.Logger.Warn("a version of coracle that is not used could not be removed", "error", err)
	}
}

// runGate commits the version once the gate lets it through.
func (p Process) runGate(ctx context.Context, s slots.State) {
	p.Logger.Info("this version is on trial", "version", p.Version, "start", s.Tries, "before", slots.Short(s.Current))
	var before Facts
	if _, err := atomicfile.ReadJSON(p.Versions.Slot(p.Digest, slots.BaselineFile), &before); err != nil {
		p.Logger.Warn("what held before the upgrade is not known, so everything has to hold", "error", err)
		before = Facts{}
	}
	gate := Gate{Before: before, Observe: p.Observer.Observe, Soak: soak(), Changed: func(failing []string) {
		if err := WriteFailing(p.Versions, p.Digest, failing); err != nil {
			p.Logger.Warn("what keeps this version from being committed could not be written", "error", err)
		}
		if len(failing) > 0 {
			p.Logger.Info("this version cannot be committed yet", "failing", strings.Join(failing, "; "))
		} else {
			p.Logger.Info("all conditions for a commit of this version hold", "for", soak())
		}
	}}
	if err := gate.Wait(ctx); errors.Is(err, errNodeNotReady) {
		p.Logger.Error("this version is refused; coracle ends, and the version before it runs again", "reason", err)
		if err := p.Versions.Back(err.Error()); err != nil && !errors.Is(err, slots.ErrNotOnTrial) {
			p.Logger.Error("the trial of this version could not be ended", "error", err)
		}
		p.End()
		return
	} else if err != nil {
		return // the process ends
	}
	for err := p.Versions.Commit(p.Digest); err != nil; err = p.Versions.Commit(p.Digest) {
		if errors.Is(err, slots.ErrNotOnTrial) {
			p.Logger.Error("this version was refused meanwhile; coracle ends, and the version before it runs again")
			p.End()
			return
		}
		p.Logger.Error("this version could not be committed; retrying until the starter ends the trial", "error", err)
		if !timers.Sleep(ctx, pause) {
			return
		}
	}
	p.Logger.Info("this version is committed", "version", p.Version, "previous", slots.Short(s.Current))
	if _, err := Accepted(p.Versions, true); err != nil { // install.sh may make another version the current one
		p.Logger.Warn("which bundles this machine has taken could not be recorded; the next start tries again", "error", err)
	}
	if p.Current != nil {
		p.Current()
	}
	if replaced, err := slots.ReplaceStarter(os.Getenv(slots.StarterEnv)); err != nil {
		p.Logger.Warn("the starter of the service stays that of an earlier version", "error", err)
	} else if replaced {
		p.Logger.Info("the starter of the service is that of this version now")
	}
	p.writeEvent(ctx, corev1.EventTypeNormal, "UpgradeCommitted", fmt.Sprintf("coracle %s is committed", p.Version))
}

// reportRefusal reports once that a candidate was refused and that this version runs again.
//
// While the program does not accept the settings of now, it stays unreported, so that those from before stay there.
func (p Process) reportRefusal(ctx context.Context, r slots.Refusal) {
	r.Reason = Reason(p.Versions, r)
	problems := p.Versions.Slot(r.Digest, slots.ProblemsFile)
	err := os.RemoveAll(problems) // of an earlier start
	if len(p.Problems) > 0 {
		err = writeLines(problems, p.Problems, 0o600)
	}
	if err != nil {
		p.Logger.Warn("what is wrong with the settings of now could not be written", "error", err)
	}
	p.Logger.Warn("an upgrade was undone: this version runs again", "version", p.Version, "refused", slots.Short(r.Digest), "reason", r.Reason)
	message := fmt.Sprintf("coracle %s runs again, because version %s was refused: %s", p.Version, slots.Short(r.Digest), r.Reason)
	if len(p.Problems) > 0 {
		message += ". It does not accept the settings of now, and runs with those from before: coracle upgrade status has them"
	}
	if !p.writeEvent(ctx, corev1.EventTypeWarning, "UpgradeRefused", message) || len(p.Problems) > 0 {
		return
	}
	if err := p.Versions.SetReported(r); err != nil {
		p.Logger.Warn("the refusal of a version will be reported again", "error", err)
		return
	}
	p.prune()
}

// writeEvent writes an Event about the machine's node. It tries again for a while, and returns false if that was in
// vain because ctx is done.
func (p Process) writeEvent(ctx context.Context, kind, reason, message string) bool {
	ctx, cancel := context.WithTimeout(ctx, reportWithin)
	defer cancel()
	for {
		err := p.tryEvent(ctx, kind, reason, message)
		if err == nil {
			return true
		}
		if !timers.Sleep(ctx, eventRetry) {
			p.Logger.Warn("an Event about an upgrade could not be written", "error", err)
			return errors.Is(ctx.Err(), context.DeadlineExceeded)
		}
	}
}

func (p Process) tryEvent(ctx context.Context, kind, reason, message string) error {
	_, client, err := p.Observer.client()
	if err != nil {
		return err
	}
	now := metav1.Now()
	_, err = client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: p.Node + ".", Namespace: metav1.NamespaceDefault},
		// As in the kubelet's own Events, a node's name is its UID: kubectl describe node searches by that.
		InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: p.Node, UID: types.UID(p.Node)},
		Type:           kind, Reason: reason, Message: message, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: "coracle", Host: p.Node},
	}, metav1.CreateOptions{})
	return err
}

// soak returns for how long all conditions have to hold.
func soak() time.Duration {
	if d, err := time.ParseDuration(os.Getenv(SoakVariable)); err == nil && d >= 0 {
		return d
	}
	return DefaultSoak
}

// WriteFailing records in a version's slot what keeps it from being committed. The record outlives the process.
func WriteFailing(v *slots.Versions, digest string, failing []string) error {
	return writeLines(v.Slot(digest, slots.FailingFile), failing, 0o644)
}

func writeLines(file string, lines []string, mode os.FileMode) error {
	_, err := atomicfile.WriteIfDifferent(file, []byte(strings.Join(lines, "\n")), mode)
	return err
}

// Failing returns what kept a version from being committed last. known is false while it has not observed anything.
func Failing(v *slots.Versions, digest string) (failing []string, known bool) {
	return ReadLines(v.Slot(digest, slots.FailingFile))
}

// ReadLines returns the lines of a file in a slot. known is false if there is none.
func ReadLines(file string) (lines []string, known bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, false
	}
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' }), true
}

// Reason returns why a version was refused: the starter's reason, and what did not hold last.
func Reason(v *slots.Versions, r slots.Refusal) string {
	if r.Reported {
		return r.Reason // it has both
	}
	if failing, _ := Failing(v, r.Digest); len(failing) > 0 {
		return r.Reason + ": " + strings.Join(failing, "; ")
	}
	return r.Reason
}
