// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/reference"
)

// Correlation are the options of the recorder. Upstream's recorder joins ten similar events into one that has the text
// of the last. The next leader would then not know the others, of which one object has compile's limit at most.
var Correlation = record.CorrelatorOptions{MaxEvents: 64}

const (
	// pageOfEvents is how many events a request for the earlier ones reads.
	pageOfEvents = 500
	// eventsOfRound is how many events a round records, and eventsPause the time until the next round records more. The
	// recorder writes one after the other, some 28 a second, and drops those for which its queue of 1,000 has no room.
	eventsOfRound, eventsPause = 20, time.Second
)

// Warnings records the events of problems, each once while it applies. The events that the API still has from the
// leader before count as recorded, so that a restart or a change of the leader repeats none. The zero value is not
// usable.
type Warnings struct {
	client    kubernetes.Interface
	recorder  record.EventRecorder
	component string
	begun     bool
	applied   map[warning]bool // at the end of the last round
	pending   []pendingEvent
}

// warning identifies an event. An object that is created again has another UID.
type warning struct {
	kind, namespace, name string
	uid                   types.UID
	reason, message       string
}

// pendingEvent is an event of the present round.
type pendingEvent struct {
	warning warning
	obj     runtime.Object
	earlier int // the number of events of its namespace that come before it
}

// NewWarnings makes the Warnings of a term. component is the source of the recorder's events.
func NewWarnings(client kubernetes.Interface, recorder record.EventRecorder, component string) *Warnings {
	return &Warnings{client: client, recorder: recorder, component: component}
}

func warningOf(ref *corev1.ObjectReference, reason, message string) warning {
	return warning{ref.Kind, ref.Namespace, ref.Name, ref.UID, reason, message}
}

// Add notes that a problem applies in this round.
func (w *Warnings) Add(obj runtime.Object, reason, format string, args ...any) {
	ref, err := reference.GetReference(scheme.Scheme, obj)
	if err != nil { // only for kinds that the scheme does not have
		return
	}
	w.pending = append(w.pending, pendingEvent{warning: warningOf(ref, reason, fmt.Sprintf(format, args...)), obj: obj})
}

// End ends a round: it records the problems that did not apply at the end of the last one, eventsOfRound at most. It
// takes one of each namespace before the second of any, so that a tenant with thousands of problems delays no other's.
// It returns the time after which the next round should record the rest; 0 for never. If the events of the leader
// before cannot be read, it records none, and the next round does.
func (w *Warnings) End(ctx context.Context) (again time.Duration, err error) {
	round := w.pending
	w.pending = nil
	if !w.begun && len(round) > 0 { // without a problem nothing that was recorded still applies
		earlier, err := w.earlier(ctx)
		if err != nil {
			return 0, err
		}
		w.applied = earlier
	}
	w.begun = true
	now, turns := make(map[warning]bool, len(round)), map[string]int{}
	var due []pendingEvent
	for _, p := range round {
		if !w.applied[p.warning] && !now[p.warning] {
			p.earlier = turns[p.warning.namespace]
			turns[p.warning.namespace]++
			due = append(due, p)
		}
		now[p.warning] = true
	}
	w.applied = now
	slices.SortStableFunc(due, func(a, b pendingEvent) int { return a.earlier - b.earlier })
	for _, p := range due[:min(eventsOfRound, len(due))] {
		w.recorder.Event(p.obj, corev1.EventTypeWarning, p.warning.reason, p.warning.message)
	}
	if len(due) <= eventsOfRound {
		return 0, nil
	}
	for _, p := range due[eventsOfRound:] {
		delete(now, p.warning)
	}
	return eventsPause, nil
}

// earlier reads the events that the API has.
func (w *Warnings) earlier(ctx context.Context) (map[warning]bool, error) {
	out := map[warning]bool{}
	options := metav1.ListOptions{Limit: pageOfEvents,
		FieldSelector: fields.Set{"source": w.component, "type": corev1.EventTypeWarning}.AsSelector().String()}
	for {
		list, err := w.client.CoreV1().Events(metav1.NamespaceAll).List(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("reading the events that an earlier leader recorded: %w", err)
		}
		for i := range list.Items {
			e := &list.Items[i]
			out[warningOf(&e.InvolvedObject, e.Reason, e.Message)] = true
		}
		if options.Continue = list.Continue; options.Continue == "" {
			return out, nil
		}
	}
}
