// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// silentAfter is how long a call may wait until it counts as one without an answer, unless anything has arrived from
// the server since the call began: two of the five election timeouts that Options.Timeout is.
func (t *Transport) silentAfter() time.Duration { return t.opts.Timeout * 2 / 5 }

// heardSince says whether anything has arrived from the server since a call began.
func (c *caller) heardSince(began time.Time) bool {
	k := c.conn.Load()
	return k != nil && k.heard.Load() > k.t.clock(began)
}

// watch calls Options.Unanswered for a call that waits for long. stop ends that.
func (t *Transport) watch(c *caller, began time.Time) (stop func() bool) {
	if t.opts.Unanswered == nil {
		return func() bool { return false }
	}
	return time.AfterFunc(t.silentAfter(), func() {
		if !c.heardSince(began) {
			t.opts.Unanswered(c.address)
		}
	}).Stop
}

// outcome calls Options.Answered or Options.Unanswered for a call that has ended with err. Where the caller has given
// up nothing is known that watch does not find.
func (t *Transport) outcome(ctx context.Context, c *caller, began time.Time, err error) {
	switch {
	case t.opts.Answered == nil || t.opts.Unanswered == nil || t.ctx.Err() != nil:
	case err == nil || c.heardSince(began):
		t.opts.Answered(c.address)
	case ctx.Err() == nil:
		t.opts.Unanswered(c.address)
	}
}

// Answers calls the server at an address and says whether it gives any answer before ctx ends. An error from that
// server is an answer. The body is that of an answer without an error. An earlier failure to connect does not count:
// Answers connects again. It does so too where nothing has arrived lately on the connection that there is.
func (t *Transport) Answers(ctx context.Context, address, method string) (body []byte, answered bool) {
	began := time.Now()
	c, err := t.caller(address)
	if err != nil {
		return nil, false
	}
	defer t.exit(c)
	tries := []*caller{c}
	if k := c.conn.Load(); k != nil && t.clock(began)-k.heard.Load() > int64(t.silentAfter()) {
		if fresh, err := t.newCaller(address); err == nil {
			defer fresh.close()
			tries = append(tries, fresh)
		}
	}
	var trying sync.WaitGroup
	defer trying.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		body     []byte
		answered bool
	}
	results := make(chan result, len(tries))
	for _, c := range tries {
		trying.Go(func() {
			body, ok := t.try(ctx, c, method, began)
			results <- result{body, ok}
		})
	}
	for range tries {
		if r := <-results; r.answered {
			return r.body, true
		}
	}
	return nil, false
}

// try makes a call on a connection. It ends as soon as an attempt to connect fails.
func (t *Transport) try(ctx context.Context, c *caller, method string, began time.Time) (body []byte, answered bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t.mu.Lock()
	failed := c.failed
	t.mu.Unlock()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-failed:
			cancel()
		case <-ended:
		}
	}()
	c.client.ResetConnectBackoff()
	var reply message
	if c.client.Invoke(ctx, callMethod, &message{method: method}, &reply, grpc.WaitForReady(true)) == nil {
		return reply.body, true
	}
	return nil, c.heardSince(began)
}
