// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

const (
	// writeEvery is the pace of a writer, writeTimeout how long one request may take before it is sent once more.
	writeEvery   = 50 * time.Millisecond
	writeTimeout = 5 * time.Second
	// retryAfter is the pause after a request that failed.
	retryAfter = 20 * time.Millisecond
	// askPatience is how long an asker waits for an answer. A request that is stuck at an unresponsive server ends when
	// the balancer closes its connection. A client that gave up before that would send the next one over the same
	// connection, and have its end counted against that one too.
	askPatience = time.Minute
)

// Writer creates one ConfigMap after the other, each until that is acknowledged.
type Writer struct {
	Name   string
	api    kubernetes.Interface
	ns     string
	mu     sync.Mutex
	acked  []Ack
	errors map[string]int
	slow   []Try
}

// Try is a request of a writer's that failed, or took long.
type Try struct {
	Ack
	Took time.Duration
	Err  error
}

// slowTry is how long a request takes that a writer remembers.
const slowTry = 500 * time.Millisecond

// Ack is a write that was acknowledged.
type Ack struct {
	Name string
	At   time.Time
}

// NewWriter prepares a writer; Run runs it.
func NewWriter(name string, api kubernetes.Interface, ns string) *Writer {
	return &Writer{Name: name, api: api, ns: ns, errors: map[string]int{}}
}

// Run writes until ctx is done.
func (w *Writer) Run(ctx context.Context) {
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		if !w.write(ctx, fmt.Sprintf("%s-%06d", w.Name, n)) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// write returns false when ctx ended before an acknowledgement.
func (w *Writer) write(ctx context.Context, name string) bool {
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for {
		began := time.Now()
		_, err := w.api.CoreV1().ConfigMaps(w.ns).Create(ctx, object, metav1.CreateOptions{})
		if ctx.Err() != nil {
			return false
		}
		w.mu.Lock()
		if took := time.Since(began); err != nil || took > slowTry {
			w.slow = append(w.slow, Try{Ack{name, began}, took, err})
		}
		if err == nil || apierrors.IsAlreadyExists(err) { // an earlier try was done, although it had no answer
			w.acked = append(w.acked, Ack{name, time.Now()})
			w.mu.Unlock()
			return true
		}
		w.errors[brief(err)]++
		w.mu.Unlock()
		pauseFor(ctx, retryAfter)
	}
}

// pauseFor waits between two tries.
func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// brief is an error without what differs each time.
func brief(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, "\": "); i >= 0 {
		text = text[i+3:]
	}
	return text
}

// LongestGap returns the longest time between two acknowledged writes, from a moment on.
func (w *Writer) LongestGap(from time.Time) time.Duration {
	var longest time.Duration
	acked, _ := w.Acked()
	for i := 1; i < len(acked); i++ {
		if acked[i].At.After(from) {
			longest = max(longest, acked[i].At.Sub(acked[i-1].At))
		}
	}
	return longest
}

// GoesOn is an error unless a write was acknowledged that was begun after a moment.
func (w *Writer) GoesOn(after time.Time) error {
	acked, errs := w.Acked()
	// The first one behind that moment may have been begun before it.
	if n := len(acked); n < 2 || acked[n-2].At.Before(after) {
		return fmt.Errorf("%d acknowledged, none since; errors: %v", n, errs)
	}
	return nil
}

// Acked are the acknowledged writes so far, and the errors met, with their numbers.
func (w *Writer) Acked() ([]Ack, map[string]int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.acked), maps.Clone(w.errors)
}

// Slow are the requests since a moment that failed or took long.
func (w *Writer) Slow(since time.Time) []Try {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Try
	for _, s := range w.slow {
		if s.At.Add(s.Took).After(since) {
			out = append(out, s)
		}
	}
	return out
}

// Watcher follows ConfigMaps by watches alone: it lists once, before it begins.
type Watcher struct {
	Name string
	api  kubernetes.Interface
	ns   string

	mu      sync.Mutex
	at      string // the newest resource version seen
	seen    map[string]bool
	resumed int
	wrong   []string
}

// NewWatcher prepares a watcher that goes on where a list ends.
func NewWatcher(name string, api kubernetes.Interface, ns string, list *corev1.ConfigMapList) *Watcher {
	w := &Watcher{Name: name, api: api, ns: ns, at: list.ResourceVersion, seen: map[string]bool{}}
	for i := range list.Items {
		w.seen[list.Items[i].Name] = true
	}
	return w
}

// Run watches until ctx is done. A watch that ended goes on where it was.
func (w *Watcher) Run(ctx context.Context) {
	for first := true; ctx.Err() == nil; first = false {
		events, err := w.api.CoreV1().ConfigMaps(w.ns).Watch(ctx, metav1.ListOptions{ResourceVersion: w.at, AllowWatchBookmarks: true})
		if err == nil {
			if !first {
				w.mu.Lock()
				w.resumed++
				w.mu.Unlock()
			}
			w.take(events)
			events.Stop()
		} else if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			w.fail("it would have to list again: %v", err)
			return
		}
		pauseFor(ctx, retryAfter)
	}
}

// take reads a watch's events until it ends.
func (w *Watcher) take(events watch.Interface) {
	for e := range events.ResultChan() {
		if e.Type == watch.Error {
			if err := apierrors.FromObject(e.Object); apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
				w.fail("it would have to list again: %v", err)
			}
			return
		}
		object, ok := e.Object.(metav1.Object)
		if !ok {
			w.fail("an event of %T", e.Object)
			return
		}
		w.mu.Lock()
		before, now := version(w.at), version(object.GetResourceVersion())
		switch {
		case e.Type == watch.Bookmark && now < before, e.Type != watch.Bookmark && now <= before:
			w.wrong = append(w.wrong, fmt.Sprintf("%s of %s at revision %d comes behind revision %d", e.Type, object.GetName(), now, before))
		case e.Type == watch.Added:
			w.seen[object.GetName()] = true
		}
		w.at = object.GetResourceVersion()
		w.mu.Unlock()
	}
}

func version(text string) uint64 {
	n, _ := strconv.ParseUint(text, 10, 64) // ours are numbers
	return n
}

func (w *Watcher) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// Missing returns which of the names it has not seen, what was wrong with the events, and how often the watch ended and
// went on.
func (w *Watcher) Missing(names []string) (missing, wrong []string, resumed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range names {
		if !w.seen[n] {
			missing = append(missing, n)
		}
	}
	return missing, append([]string(nil), w.wrong...), w.resumed
}

// Asker asks for the same thing again and again, and once more when that failed.
type Asker struct {
	Name string
	ask  func(ctx context.Context) error

	mu       sync.Mutex
	asked    int
	retried  int
	failed   []Failure
	answered []answered
	steady   int // how many had an answer since the last failure
}

// answered is when a request was begun that had an answer, perhaps when it was sent once more, and how long that took.
type answered struct {
	began time.Time
	took  time.Duration
}

// Failure is a request that failed twice: when it was begun, and when it failed for the second time.
type Failure struct {
	At, Until time.Time
	Err       error
}

// askEvery is the pace of an asker.
const askEvery = 100 * time.Millisecond

// NewAsker prepares an asker; Run runs it. Each time it asks it waits for askPatience at most.
func NewAsker(name string, ask func(ctx context.Context) error) *Asker {
	return &Asker{Name: name, ask: ask}
}

// Run asks until ctx is done.
func (a *Asker) Run(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		began := time.Now()
		err := a.once(ctx)
		again := err != nil
		if again {
			if err2 := a.once(ctx); err2 == nil {
				err = nil
			} else {
				err = errors.Join(err, err2)
			}
		}
		if ctx.Err() != nil {
			return
		}
		a.mu.Lock()
		a.asked++
		if again {
			a.retried++
		}
		if err != nil {
			a.failed, a.steady = append(a.failed, Failure{began, time.Now(), err}), 0
		} else {
			a.steady++
			a.answered = append(a.answered, answered{began, time.Since(began)})
		}
		a.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (a *Asker) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	return a.ask(ctx)
}

// Failed are the requests that failed twice; asked is how many there were, retried how many failed once.
func (a *Asker) Failed() (failed []Failure, asked, retried int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Failure(nil), a.failed...), a.asked, a.retried
}

// Answered is how many requests that were begun after a moment have had an answer, and how long the slowest one took of
// those that were under way then or were begun later.
func (a *Asker) Answered(after time.Time) (n int, slowest time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, one := range a.answered {
		if one.began.After(after) {
			n++
		}
		if one.began.Add(one.took).After(after) {
			slowest = max(slowest, one.took)
		}
	}
	return n, slowest
}

// Steady is how many requests in a row have had an answer, up to the newest one.
func (a *Asker) Steady() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.steady
}
