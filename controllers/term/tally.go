// SPDX-License-Identifier: Apache-2.0

package term

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// ErrStragglers says that goroutines of a term were still there when the wait for them ended.
var ErrStragglers = errors.New("goroutines outlived their term of leadership")

// tallyLabel is the profiler label that every goroutine of a term carries: a goroutine inherits the labels of the one
// that starts it. Upstream starts many without a handle to wait on (each binding cycle of the scheduler, for one), so
// asking the runtime is the only way to know that none is left. Labels cost nothing while the term runs.
const tallyLabel = "coracle.dev/term"

// processWide are the goroutines of which a process has one, whichever part starts it first, by a function on their
// stacks. They may carry a term's label and outlive it.
var processWide = []string{
	"os/signal.loop", // the scheduler's cache debugger asks to hear of SIGUSR2
}

// inertLoops are a work queue's own two goroutines. A few of upstream's constructors and Run functions return early
// without ending their queue (pkg/controller/nodeipam: an allocation that fails, an informer that had not synced),
// which takes a term that ends within a fraction of a second of its beginning. Such a queue has no worker and acts on
// nothing.
var inertLoops = []string{
	"k8s.io/client-go/util/workqueue.(*Typed[...]).updateUnfinishedWorkLoop",
	"k8s.io/client-go/util/workqueue.(*delayingType[...]).waitingLoop",
}

// inertPatience is how long to wait when only inert goroutines are left: those that end at all do at once.
const inertPatience = 500 * time.Millisecond

// serial tells the terms of one process apart; the Raft term would not, in tests.
var serial atomic.Uint64

// tally accounts for the goroutines of one term.
type tally struct {
	value string
	ctx   context.Context // holds the labels
	// Round trips, whose goroutines do not carry the label meanwhile: how many have begun, and how many are running.
	begun, running atomic.Int64
}

// newTally returns an account and the context that carries its label: a goroutine that calls pprof.SetGoroutineLabels
// with it is counted, and so is every one that it starts.
func newTally(ctx context.Context) (*tally, context.Context) {
	t := &tally{value: strconv.FormatUint(serial.Add(1), 10)}
	t.ctx = pprof.WithLabels(ctx, pprof.Labels(tallyLabel, t.value))
	return t, t.ctx
}

// exempt keeps the account to the client's side. A goroutine that begins below the transport (a connection's loops, or
// the API server's own with the in-memory loopback) belongs to the owner of that side and may outlive the term. The
// goroutine that waits for the answer is the term's: the round trip stands for it.
func (t *tally) exempt(next http.RoundTripper) http.RoundTripper {
	return exempting{next: next, tally: t}
}

type exempting struct {
	next  http.RoundTripper
	tally *tally
}

func (e exempting) RoundTrip(r *http.Request) (*http.Response, error) {
	e.tally.running.Add(1)
	e.tally.begun.Add(1) // after running, which count reads after begun
	pprof.SetGoroutineLabels(context.Background())
	defer func() {
		pprof.SetGoroutineLabels(e.tally.ctx)
		e.tally.running.Add(-1)
	}()
	return e.next.RoundTrip(r)
}

// WrappedRoundTripper lets client-go find the transport below.
func (e exempting) WrappedRoundTripper() http.RoundTripper { return e.next }

// wait returns nil as soon as no goroutine of the term is left, and an error that shows where they are when some remain
// after patience. It returns the number of inert ones that it gave up on.
func (t *tally) wait(patience time.Duration) (inert int, err error) {
	begin := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		l, err := t.count()
		waited := time.Since(begin)
		switch {
		case err != nil || l.live+l.inert == 0:
			return 0, err
		case l.live == 0 && waited >= min(inertPatience, patience):
			return l.inert, nil
		case waited >= patience:
			return l.inert, fmt.Errorf("%w: %d after %s, first at:\n%s", ErrStragglers, l.live, patience, strings.Join(l.stacks, "\n"))
		}
		time.Sleep(pause)
	}
}

// left is what count found.
type left struct {
	live, inert int      // live ones include those inside a round trip
	stacks      []string // the first few of the live ones that carry the label
}

var recordHead = regexp.MustCompile(`(?m)^(\d+) @ .*\n# labels: (.*)$`)

// count reads the runtime's goroutine profile for goroutines that carry the term's label, and adds those that do not
// because they are inside a round trip. One that went in or out while the profile was taken is counted at least once:
// it was inside before, or its round trip has begun since.
func (t *tally) count() (left, error) {
	begun, inside := t.begun.Load(), t.running.Load()
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		return left{}, fmt.Errorf("read the goroutine profile: %w", err)
	}
	l := left{live: int(inside + t.begun.Load() - begun)}
	if l.live > 0 {
		l.stacks = append(l.stacks, fmt.Sprintf("%d inside requests", l.live))
	}
	mark := fmt.Sprintf("%q:%q", tallyLabel, t.value)
	for record := range strings.SplitSeq(b.String(), "\n\n") {
		m := recordHead.FindStringSubmatch(record)
		if m == nil || !strings.Contains(m[2], mark) || calls(record, processWide) {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		if calls(record, inertLoops) {
			l.inert += n
			continue
		}
		l.live += n
		if len(l.stacks) < 5 {
			l.stacks = append(l.stacks, record)
		}
	}
	return l, nil
}

// calls tells whether one of the functions is on a record's stack.
func calls(record string, functions []string) bool {
	return slices.ContainsFunc(functions, func(f string) bool { return strings.Contains(record, "\t"+f+"+") })
}
