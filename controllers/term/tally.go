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

// processWide are the goroutines of which a process has one, whoever happens to start it first, by a function on their
// stacks. They may carry a term's label and outlive it.
var processWide = []string{
	"os/signal.loop", // the scheduler's cache debugger asks to hear of SIGUSR2
}

// serial tells the terms of one process apart; the Raft term would not, in tests.
var serial atomic.Uint64

// tally accounts for the goroutines of one term.
type tally struct {
	value string
	ctx   context.Context // holds the labels
}

// newTally returns an account and the context that carries its label: a goroutine that calls pprof.SetGoroutineLabels
// with it is counted, and so is every one that it starts.
func newTally(ctx context.Context) (*tally, context.Context) {
	t := &tally{value: strconv.FormatUint(serial.Add(1), 10)}
	t.ctx = pprof.WithLabels(ctx, pprof.Labels(tallyLabel, t.value))
	return t, t.ctx
}

// exempt keeps the account to the client's side. A goroutine that begins below the transport (a connection's loops, or
// the API server's own with the in-memory loopback) belongs to whoever owns that side and may outlive the term.
func (t *tally) exempt(next http.RoundTripper) http.RoundTripper {
	return exempting{next: next, labels: t.ctx}
}

type exempting struct {
	next   http.RoundTripper
	labels context.Context
}

func (e exempting) RoundTrip(r *http.Request) (*http.Response, error) {
	pprof.SetGoroutineLabels(context.Background())
	defer pprof.SetGoroutineLabels(e.labels)
	return e.next.RoundTrip(r)
}

// WrappedRoundTripper lets client-go find the transport below.
func (e exempting) WrappedRoundTripper() http.RoundTripper { return e.next }

// wait returns nil as soon as no goroutine of the term is left, and an error that shows where they are when some remain
// after patience.
func (t *tally) wait(patience time.Duration) error {
	end := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		n, stacks, err := t.count()
		if err != nil || n == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: %d after %s, first at:\n%s", ErrStragglers, n, patience, stacks)
		}
		time.Sleep(pause)
	}
}

var recordHead = regexp.MustCompile(`(?m)^(\d+) @ .*\n# labels: (.*)$`)

// count reads the runtime's goroutine profile: how many carry the term's label, and the first stacks of those.
func (t *tally) count() (int, string, error) {
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		return 0, "", fmt.Errorf("read the goroutine profile: %w", err)
	}
	total, shown := 0, []string{}
	mark := fmt.Sprintf("%q:%q", tallyLabel, t.value)
	for record := range strings.SplitSeq(b.String(), "\n\n") {
		m := recordHead.FindStringSubmatch(record)
		if m == nil || !strings.Contains(m[2], mark) || isProcessWide(record) {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		total += n
		if len(shown) < 5 {
			shown = append(shown, record)
		}
	}
	return total, strings.Join(shown, "\n"), nil
}

func isProcessWide(record string) bool {
	return slices.ContainsFunc(processWide, func(f string) bool { return strings.Contains(record, "\t"+f+"+") })
}
