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
func (s *calls) silentAfter() time.Duration { return s.opts.Timeout * 2 / 5 }

// heardSince says whether anything has arrived from the server since a call began.
func (c *caller) heardSince(began time.Time) bool {
	k := c.conn.Load()
	return k != nil && k.lastRead.Load() > k.conns.clock(began)
}

// watch calls Options.Unanswered for a call that waits for long. stop ends that.
func (s *calls) watch(c *caller, began time.Time) (stop func() bool) {
	if s.opts.Unanswered == nil {
		return func() bool { return false }
	}
	return time.AfterFunc(s.silentAfter(), func() {
		if !c.heardSince(began) {
			s.opts.Unanswered(c.address)
		}
	}).Stop
}

// outcome calls Options.Answered or Options.Unanswered for a call that has ended with err. Where the caller has given
// up nothing is known that watch does not find.
func (s *calls) outcome(ctx context.Context, c *caller, began time.Time, err error) {
	switch {
	case s.opts.Answered == nil || s.opts.Unanswered == nil || s.ctx.Err() != nil:
	case err == nil || c.heardSince(began):
		s.opts.Answered(c.address)
	case ctx.Err() == nil:
		s.opts.Unanswered(c.address)
	}
}

// Answers calls the server at an address and says whether it gives any answer before ctx ends. An error from that
// server is an answer. The body is that of an answer without an error. An earlier failure to connect does not count:
// Answers connects again. It also does if nothing has arrived lately on the present connection.
func (s *calls) Answers(ctx context.Context, address, method string) (body []byte, answered bool) {
	began := time.Now()
	c, err := s.caller(address)
	if err != nil {
		return nil, false
	}
	defer s.endCall(c)
	tries := []*caller{c}
	if k := c.conn.Load(); k != nil && s.clock(began)-k.lastRead.Load() > int64(s.silentAfter()) {
		if fresh, err := s.newCaller(address); err == nil {
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
			body, ok := s.callOnce(ctx, c, method, began)
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

// callOnce makes a call on a connection. It ends as soon as an attempt to connect fails.
func (s *calls) callOnce(ctx context.Context, c *caller, method string, began time.Time) (body []byte, answered bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	failed := c.failed
	s.mu.Unlock()
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
