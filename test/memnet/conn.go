// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// segment is what one write, or the end of a stream, puts on the way.
type segment struct {
	data    []byte
	end     bool // the writer closed
	sent    time.Time
	due     time.Time
	arrived bool // seen to be due before the link was cut
	lost    bool // for good, with all that follows, see Network.Largest
}

// stream is one direction of a connection. The network's lock guards it.
type stream struct {
	n        *Network
	l        *link
	reader   *conn
	segments []segment
	stuck    bool      // what is sent now is lost
	bytes    int       // of data in segments
	last     time.Time // when the newest segment is due: nothing overtakes it
	free     time.Time // when the link has taken all that was sent, see Network.Rate
	reset    *segment  // the writer's end died, or refuses data: this news is under way
	flights  []flight
}

// push puts something on the way.
func (s *stream) push(g segment) {
	g.sent = time.Now()
	s.free = s.l.transmittedAt(len(g.data), g.sent, s.free)
	g.due = s.free.Add(s.n.transit(s.l))
	if g.due.Before(s.last) {
		g.due = s.last
	}
	s.last = g.due
	s.stuck = s.stuck || s.l.largest > 0 && len(g.data) > s.l.largest
	g.lost = s.stuck
	s.reader.out.reader.watchSilence()
	s.segments = append(s.segments, g)
	s.bytes += len(g.data)
	s.fly(g.sent, g.due)
}

// pushReset lets the reader's end die when the news has arrived.
func (s *stream) pushReset() {
	if s.reset == nil {
		s.reset = &segment{due: time.Now().Add(s.n.transit(s.l))}
	}
}

// has says whether something can be seen at the reader's end, and if not how
// long that takes, or a negative number if that is unknown.
func (s *stream) has(g *segment, now time.Time) (bool, time.Duration) {
	switch {
	case g.lost:
		return false, -1
	case g.arrived || !s.l.cut && !now.Before(g.due):
		return true, 0
	case s.l.cut:
		return false, -1
	}
	return false, g.due.Sub(now)
}

// settle is called before the link is cut.
func (s *stream) settle(now time.Time) {
	for i := range s.segments {
		g := &s.segments[i]
		g.arrived = g.arrived || !g.lost && !now.Before(g.due)
	}
	if s.reset != nil {
		s.reset.arrived = s.reset.arrived || !now.Before(s.reset.due)
	}
}

// retransmit is called after the link has healed: what did not arrive before
// the cut sets out now.
func (s *stream) retransmit(now time.Time) {
	due := now.Add(s.n.transit(s.l))
	lost := false
	s.free = now
	for i := range s.segments {
		if g := &s.segments[i]; !g.arrived {
			if !lost && s.n.slow {
				_, again := s.tries(g.sent, now)
				due = due.Add(again.Sub(now))
			}
			lost = true
			free := s.l.transmittedAt(len(g.data), now, s.free)
			due, s.free = due.Add(free.Sub(s.free)), free
			if g.due.Before(due) {
				g.due = due
			}
			s.last = g.due
		}
	}
	if s.reset != nil && !s.reset.arrived && s.reset.due.Before(due) {
		s.reset.due = due
	}
	if lost && s.reader.closed && !s.reader.dead {
		s.reader.refuse()
	}
}

// conn is one end of a connection.
type conn struct {
	n             *Network
	local         *Host
	remote        string
	number        uint64
	in, out       *stream
	changed       *sync.Cond // of n.mu, shared by both ends
	closed        bool       // by its owner
	dead          bool       // its host crashed
	readDeadline  deadline
	writeDeadline deadline
	silence       time.Duration // see EndAfterSilence
	silent        *time.Timer   // ends the connection; nil while the peer is in reach
}

// deadline is a moment, and the timer that wakes who waits for it.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed(now time.Time) bool { return !d.at.IsZero() && !now.Before(d.at) }

func (n *Network) connect(from, to *Host) (mine, peerEnd *conn) {
	changed := sync.NewCond(&n.mu)
	mine = &conn{n: n, local: from, remote: to.address, changed: changed}
	peerEnd = &conn{n: n, local: to, remote: from.address, changed: changed}
	mine.out = &stream{n: n, l: n.link(from.address, to.address), reader: peerEnd}
	peerEnd.out = &stream{n: n, l: n.link(to.address, from.address), reader: mine}
	mine.in, peerEnd.in = peerEnd.out, mine.out
	for _, c := range []*conn{mine, peerEnd} {
		c.number = c.local.made
		c.local.made++
		c.local.conns[c] = struct{}{}
	}
	return mine, peerEnd
}

// broken returns why the connection cannot be used at all, if it cannot, and
// otherwise after how long that is to be looked at again (negative: when notified).
func (c *conn) broken(now time.Time) (time.Duration, error) {
	switch {
	case c.closed:
		return 0, net.ErrClosed
	case c.dead:
		return 0, syscall.ECONNRESET
	case c.in.reset != nil:
		found, wait := c.in.has(c.in.reset, now)
		if found {
			return 0, syscall.ECONNRESET
		}
		return wait, nil
	}
	return -1, nil
}

func (c *conn) Read(b []byte) (int, error) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	for {
		now := time.Now()
		wait, err := c.broken(now)
		if err != nil {
			return 0, c.failed("read", err)
		}
		if c.readDeadline.passed(now) {
			return 0, c.failed("read", os.ErrDeadlineExceeded)
		}
		if len(b) == 0 {
			return 0, nil
		}
		if len(c.in.segments) > 0 {
			g := &c.in.segments[0]
			found, until := c.in.has(g, now)
			switch {
			case found && g.end:
				return 0, io.EOF
			case found:
				return c.receive(b, now), nil
			case wait < 0 || until >= 0 && until < wait:
				wait = until
			}
		}
		c.wait(wait)
	}
}

// receive moves what has arrived into b.
func (c *conn) receive(b []byte, now time.Time) int {
	took := 0
	for took < len(b) && len(c.in.segments) > 0 {
		g := &c.in.segments[0]
		if found, _ := c.in.has(g, now); !found || g.end {
			break
		}
		k := copy(b[took:], g.data)
		took += k
		g.data = g.data[k:]
		if len(g.data) == 0 {
			c.in.segments[0] = segment{}
			c.in.segments = c.in.segments[1:]
		}
	}
	c.in.bytes -= took
	c.changed.Broadcast() // a writer may wait for room
	return took
}

func (c *conn) Write(b []byte) (int, error) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	wrote := 0
	for {
		now := time.Now()
		wait, err := c.broken(now)
		if err != nil {
			return wrote, c.failed("write", err)
		}
		if c.writeDeadline.passed(now) {
			return wrote, c.failed("write", os.ErrDeadlineExceeded)
		}
		if k := min(bufferBytes-c.out.bytes, len(b)-wrote); k > 0 {
			c.out.push(segment{data: append([]byte(nil), b[wrote:wrote+k]...)})
			wrote += k
			if c.out.reader.closed && !c.out.l.cut {
				c.out.reader.refuse()
			}
			c.changed.Broadcast()
		}
		if wrote == len(b) {
			return wrote, nil
		}
		c.wait(wait)
	}
}

// refuse is what a closed end answers to data: the writer's end dies. The data
// is gone.
func (c *conn) refuse() {
	c.in.segments, c.in.bytes = nil, 0
	c.out.pushReset()
}

// wait sleeps until the connection changes, and at most that long if it is not negative.
func (c *conn) wait(d time.Duration) {
	if d >= 0 {
		timer := time.AfterFunc(d, func() { c.n.wake(c.changed) })
		defer timer.Stop()
	}
	c.changed.Wait()
}

// Close ends the connection. What was written still arrives.
func (c *conn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return c.failed("close", net.ErrClosed)
	}
	c.closed = true
	c.stopTimers()
	if !c.dead {
		c.out.push(segment{end: true})
		if c.in.bytes > 0 { // as the kernel does with unread data
			c.refuse()
		}
	}
	c.changed.Broadcast()
	c.drop()
	return nil
}

// abort is the crash of the end's host.
func (c *conn) abort() {
	if c.dead || c.closed {
		return
	}
	c.dead = true
	c.out.pushReset()
	c.stopTimers()
	c.changed.Broadcast()
	c.drop()
}

// drop drops the connection from its host when neither direction can change
// any more because of a link.
func (c *conn) drop() {
	other := c.out.reader
	if (c.closed || c.dead) && (other.closed || other.dead) {
		delete(c.local.conns, c)
		delete(other.local.conns, other)
	}
}

// EndAfterSilence ends the connection when what it sends has not been acknowledged for so long, or would not be, as
// TCP's keepalive and its user timeout do.
func (c *conn) EndAfterSilence(d time.Duration) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.silence = d
	c.watchSilence()
}

// watchSilence is called when the peer may have come into reach or out of reach.
func (c *conn) watchSilence() {
	reached := !c.out.l.cut && !c.in.l.cut && !c.out.stuck
	switch {
	case c.silence == 0 || c.closed || c.dead || reached == (c.silent == nil):
	case reached:
		c.silent.Stop()
		c.silent = nil
	default:
		var timer *time.Timer
		timer = time.AfterFunc(c.silence, func() {
			c.n.mu.Lock()
			defer c.n.mu.Unlock()
			if c.silent == timer {
				c.abort()
			}
		})
		c.silent = timer
	}
}

func (c *conn) stopTimers() {
	if c.silent != nil {
		c.silent.Stop()
		c.silent = nil
	}
	for _, d := range []*deadline{&c.readDeadline, &c.writeDeadline} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
}

func (c *conn) SetDeadline(t time.Time) error {
	return c.setDeadline(t, &c.readDeadline, &c.writeDeadline)
}
func (c *conn) SetReadDeadline(t time.Time) error  { return c.setDeadline(t, &c.readDeadline) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, &c.writeDeadline) }

func (c *conn) setDeadline(t time.Time, which ...*deadline) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return c.failed("set", net.ErrClosed)
	}
	for _, d := range which {
		if d.timer != nil {
			d.timer.Stop()
		}
		d.at, d.timer = t, nil
		if !t.IsZero() {
			d.timer = time.AfterFunc(time.Until(t), func() { c.n.wake(c.changed) })
		}
	}
	c.changed.Broadcast()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return Addr(c.local.address) }
func (c *conn) RemoteAddr() net.Addr { return Addr(c.remote) }

func (c *conn) failed(op string, err error) error {
	return &net.OpError{Op: op, Net: "mem", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
