// SPDX-License-Identifier: Apache-2.0

package memnet

import "time"

// patience is TCP's least time, beyond the way there and back, until it sends again what was not acknowledged. It
// doubles with each time.
const patience = 200 * time.Millisecond

// flight is what was sent until it is acknowledged.
type flight struct {
	sent  time.Time // for the first time
	acked time.Time // when the acknowledgement arrives; zero if it was lost, or what was sent
}

// fly notes that something sets out that is due at its reader's then.
func (s *stream) fly(sent, due time.Time) {
	s.land(sent)
	f := flight{sent: sent}
	if s.reaches() {
		f.acked = due.Add(s.back().delay)
	}
	s.flights = append(s.flights, f)
}

// back is the link that carries acknowledgements.
func (s *stream) back() *link { return s.reader.out.l }

// reaches says whether what is sent now will be acknowledged.
func (s *stream) reaches() bool { return !s.l.cut && !s.back().cut }

// land forgets what has been acknowledged, and all that was sent before it.
func (s *stream) land(now time.Time) {
	for i := len(s.flights) - 1; i >= 0; i-- {
		if at := s.flights[i].acked; !at.IsZero() && !now.Before(at) {
			s.flights = s.flights[i+1:]
			return
		}
	}
}

// strand is called before either link is cut: what is under way is lost.
func (s *stream) strand(now time.Time) {
	s.land(now)
	for i := range s.flights {
		s.flights[i].acked = time.Time{}
	}
}

// refly is called after either link has healed: what was lost is sent again.
func (s *stream) refly(now time.Time) {
	if len(s.flights) == 0 || !s.reaches() {
		return
	}
	at := now
	if s.n.slow {
		_, at = s.tries(s.flights[0].sent, now)
	}
	for i := range s.flights {
		if s.flights[i].acked.IsZero() {
			s.flights[i].acked = at.Add(s.l.delay + s.back().delay)
		}
	}
}

// tries returns how often TCP has sent something again until now, and when it does so for the first time after that.
// What is sent just now counts as one that is still to come.
func (s *stream) tries(sent, now time.Time) (made int, next time.Time) {
	if !sent.Before(now) {
		return 0, sent
	}
	wait := patience + s.l.delay + s.l.jitter + s.back().delay + s.back().jitter
	for next = sent.Add(wait); next.Before(now); next = next.Add(wait) {
		wait *= 2
		made++
	}
	return made, next
}

// Retransmits returns how often what this end sent was sent again without an acknowledgement since, as TCP_INFO has it
// of the kernel's connections.
func (c *conn) Retransmits() int {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	now := time.Now()
	c.out.land(now)
	if c.closed || c.dead || len(c.out.flights) == 0 {
		return 0
	}
	made, _ := c.out.tries(c.out.flights[0].sent, now)
	return made
}
