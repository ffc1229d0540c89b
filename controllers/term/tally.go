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

// ErrStragglers says that goroutines of a term were still running when the wait for them ended.
var ErrStragglers = errors.New("goroutines outlived their term of leadership")

// tallyLabel is the profiler label of each goroutine of a term. A goroutine inherits the labels of the goroutine that
// starts it. Upstream starts many without a handle to wait for (for example each binding cycle of the scheduler). Only
// the runtime can then report that none is left. Labels cost nothing while the term runs.
const tallyLabel = "coracle.dev/term"

// processWide are functions on the stacks of goroutines of which a process has only one, whichever part starts it
// first. They may have a term's label and continue after the term.
var processWide = []string{
	"os/signal.loop", // the scheduler's cache debugger registers for SIGUSR2
}

// inertLoops are the two goroutines of a work queue itself. A few of upstream's constructors and Run functions return
// early without ending their queue (pkg/controller/nodeipam: a failed allocation, an informer that has not synced).
// That occurs in a term that ends within a fraction of a second. Such a queue has no worker and no effect.
var inertLoops = []string{
	"k8s.io/client-go/util/workqueue.(*Typed[...]).updateUnfinishedWorkLoop",
	"k8s.io/client-go/util/workqueue.(*delayingType[...]).waitingLoop",
}

// inertTimeout is the wait when only inert goroutines are left. Those that end at all end at once.
const inertTimeout = 500 * time.Millisecond

// tallySerial distinguishes the terms of one process. In tests the Raft term would not.
var tallySerial atomic.Uint64

// tally counts the goroutines of one term.
type tally struct {
	value string
	ctx   context.Context // with the labels
	// Round trips, whose goroutines do not have the label meanwhile: the number begun, and the number running.
	begun, running atomic.Int64
}

// newTally returns a tally and a context with its label. A goroutine that calls pprof.SetGoroutineLabels with the
// context is counted, and so are all goroutines that it starts.
func newTally(ctx context.Context) (*tally, context.Context) {
	t := &tally{value: strconv.FormatUint(tallySerial.Add(1), 10)}
	t.ctx = pprof.WithLabels(ctx, pprof.Labels(tallyLabel, t.value))
	return t, t.ctx
}

// exempt limits the tally to the client's side. A goroutine that begins below the transport (a connection's loops, or
// the API server's own with the in-memory loopback) belongs to the owner of that side and may continue after the term.
// The goroutine that waits for the response is the term's. While it does, the round trip is counted in its place.
func (t *tally) exempt(next http.RoundTripper) http.RoundTripper {
	return exemptTransport{transport: next, tally: t}
}

type exemptTransport struct {
	transport http.RoundTripper
	tally     *tally
}

func (e exemptTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	e.tally.running.Add(1)
	e.tally.begun.Add(1) // after running, which count reads after begun
	pprof.SetGoroutineLabels(context.Background())
	defer func() {
		pprof.SetGoroutineLabels(e.tally.ctx)
		e.tally.running.Add(-1)
	}()
	return e.transport.RoundTrip(r)
}

// WrappedRoundTripper gives client-go access to the transport below.
func (e exemptTransport) WrappedRoundTripper() http.RoundTripper { return e.transport }

// wait returns nil once no goroutine of the term is left. If some remain after patience, it returns an error with their
// stacks. inert is the number of inert ones that are left.
func (t *tally) wait(patience time.Duration) (inert int, err error) {
	begin := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		l, err := t.count()
		waited := time.Since(begin)
		switch {
		case err != nil || l.live+l.inert == 0:
			return 0, err
		case l.live == 0 && waited >= min(inertTimeout, patience):
			return l.inert, nil
		case waited >= patience:
			return l.inert, fmt.Errorf("%w: %d after %s, first at:\n%s", ErrStragglers, l.live, patience, strings.Join(l.stacks, "\n"))
		}
		time.Sleep(pause)
	}
}

type remaining struct {
	live, inert int      // live includes goroutines inside a round trip
	stacks      []string // the first few labelled ones of live
}

var recordHead = regexp.MustCompile(`(?m)^(\d+) @ .*\n# labels: (.*)$`)

// count counts the goroutines with the term's label in the runtime's goroutine profile. It adds those without the label
// that are inside a round trip. One that entered or left a round trip while the profile was taken is counted at least
// once: it was inside before, or its round trip has begun since.
func (t *tally) count() (remaining, error) {
	begun, inside := t.begun.Load(), t.running.Load()
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		return remaining{}, fmt.Errorf("read the goroutine profile: %w", err)
	}
	l := remaining{live: int(inside + t.begun.Load() - begun)}
	if l.live > 0 {
		l.stacks = append(l.stacks, fmt.Sprintf("%d inside requests", l.live))
	}
	mark := fmt.Sprintf("%q:%q", tallyLabel, t.value)
	for record := range strings.SplitSeq(b.String(), "\n\n") {
		m := recordHead.FindStringSubmatch(record)
		if m == nil || !strings.Contains(m[2], mark) || stackCalls(record, processWide) {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		if stackCalls(record, inertLoops) {
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

// stackCalls reports whether one of the functions is on a record's stack.
func stackCalls(record string, functions []string) bool {
	return slices.ContainsFunc(functions, func(f string) bool { return strings.Contains(record, "\t"+f+"+") })
}
