// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Servers compare their wall clocks in the calls that they make. Once in compareEvery a call asks for the time of the
// other server, which answers with what its clock shows when the call arrives, in milliseconds since 1970. The question
// is what the caller has found last, so that both know it: how far the other clock is ahead, and how exact that is, in
// milliseconds, or clockUnknown. Both are in gRPC's headers, which servers of older versions ignore.
const (
	clockHeader  = "coracle-clock"
	clockUnknown = "?"
	compareEvery = 2 * time.Second
	// maxComparison is how long a call that compares clocks may take. A longer one would not say enough.
	maxComparison = 10 * time.Second
	// clockStep is the change of the difference between two clocks that shows that one of them was set. The next call
	// compares again then, so that the other server learns of it.
	clockStep = time.Second
)

// An Offset is how far another server's clock is ahead of this server's. It is negative if that clock is behind.
type Offset struct {
	By     time.Duration
	Within time.Duration // the difference from By is no more than this
	At     time.Time     // when the clocks were compared, by Go's monotonic clock
}

// Offset returns the newest comparison of this server's clock with another one's. It returns false if there was none.
func (ps *peers) Offset(id raft.ServerID) (Offset, bool) {
	if p := ps.find(id); p != nil {
		if o := p.offset.Load(); o != nil {
			return *o, true
		}
	}
	return Offset{}, false
}

// CompareClocks has the next call to an address compare the clocks, however short a time ago they were compared.
func (s *calls) CompareClocks(address string) {
	if c, err := s.caller(address); err == nil {
		c.lastCompared.Store(0)
		s.endCall(c)
	}
}

// wall returns what this server's clock shows.
func (s *calls) wall() time.Time {
	if s.opts.Wall != nil {
		return s.opts.Wall()
	}
	return time.Now()
}

// comparison is a call that also compares the clocks of its two ends.
type comparison struct {
	began  time.Time // by Go's monotonic clock
	wall   time.Time
	answer metadata.MD
}

// compare makes a call a comparison of clocks, if one is due. It returns nil otherwise.
func (s *calls) compare(ctx context.Context, c *caller) (context.Context, *comparison) {
	now, last := s.clock(time.Now()), c.lastCompared.Load()
	if last != 0 && now-last < int64(compareEvery) || !c.lastCompared.CompareAndSwap(last, max(now, 1)) {
		return ctx, nil
	}
	question := clockUnknown
	if p := c.peer.Load(); p != nil {
		if o := p.offset.Load(); o != nil {
			question = fmt.Sprintf("%d %d", o.By.Milliseconds(), o.Within.Milliseconds())
		}
	}
	return metadata.AppendToOutgoingContext(ctx, clockHeader, question), &comparison{began: time.Now(), wall: s.wall()}
}

// options returns what a call needs to receive the answer.
func (q *comparison) options() []grpc.CallOption {
	if q == nil {
		return nil
	}
	return []grpc.CallOption{grpc.Header(&q.answer)}
}

// recordComparison records how far the peer's clock is ahead of this server's, as the answer of the call shows.
func (s *calls) recordComparison(c *caller, q *comparison) {
	p := c.peer.Load()
	if q == nil || p == nil || len(q.answer.Get(clockHeader)) != 1 {
		return
	}
	took := time.Since(q.began)
	ms, err := strconv.ParseInt(q.answer.Get(clockHeader)[0], 10, 64)
	if err != nil || took > maxComparison {
		return
	}
	by := time.UnixMilli(ms).Sub(q.wall.Round(0)) - took/2
	if before := p.offset.Load(); before == nil || (before.By-by).Abs() > clockStep+before.Within+took/2 {
		c.lastCompared.Store(0)
	}
	s.noteOffset(p, Offset{By: by, Within: took/2 + time.Millisecond, At: time.Now()})
}

// answerClock sends what this server's clock shows, if a call asks for that.
func (s *calls) answerClock(ctx context.Context, from string) {
	in, _ := metadata.FromIncomingContext(ctx)
	question := in.Get(clockHeader)
	if len(question) != 1 {
		return
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs(clockHeader, strconv.FormatInt(s.wall().UnixMilli(), 10))) // fails for a call that has ended
	var by, within int64
	if n, _ := fmt.Sscanf(question[0], "%d %d", &by, &within); n == 2 && from != "" {
		const ms = time.Duration(time.Millisecond)
		s.noteOffset(s.peer(from), Offset{By: -time.Duration(by) * ms, Within: time.Duration(within) * ms, At: time.Now()})
	}
}

func (s *calls) noteOffset(p *peer, o Offset) {
	p.offset.Store(&o)
	if s.opts.Compared != nil {
		s.opts.Compared(raft.ServerID(p.id), o)
	}
}
