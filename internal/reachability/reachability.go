// SPDX-License-Identifier: Apache-2.0

// Package reachability is one machine's own view of which nodes it cannot reach.
//
// Others nominate: gossip, when a member did not answer this machine or is said not to answer another one. A check of
// this machine's own decides: does the node's kernel still answer a TCP connection, at an address that the API says is
// the node's? So no member can make a node seem unreachable to others, and lost datagrams mark no node. A node that
// this machine has never reached is never marked: it may be behind a router or a firewall. The package writes nothing
// anywhere. While no node is nominated it does nothing.
package reachability

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// kubeletPort is asked beside the node's one port: either may be closed by a firewall.
	kubeletPort = 10250
	// recheck is how often a node is checked that is not reached, recheckLong the same after longThen.
	recheck, recheckLong = time.Second, 5 * time.Second
	longThen             = time.Minute
	// ownGap and reportedGap are the least times between a check's end and the next one, when this machine has reason
	// for one itself and when another member says so.
	ownGap, reportedGap = 250 * time.Millisecond, 5 * time.Second
	// afterBye is how long a node is looked at that has said good-bye, or that gossip has given up: it may be the
	// machine that stops.
	afterBye = 20 * time.Second
	// afterReturn is how long a node is checked that is reached again, or until gossip has heard of its return: until
	// then no member probes it.
	afterReturn = time.Minute
	// verifyWithin is the time after a node's appearance within which it is tried for the first time, so that a new
	// machine is not called by all others at once; verifyAgain the wait after the first failure, which doubles, and
	// verifyMost how often it is tried.
	verifyWithin = 2 * time.Second
	verifyAgain  = 10 * time.Second
	verifyMost   = 6
	// unknownAgain is the wait for the address of a node that the API does not have, or not yet: gossip hears of a
	// machine first, and of others before a machine that starts has any list from the API. It doubles, and unknownMost
	// is how often it is waited for.
	unknownAgain = time.Second
	unknownMost  = 9
	// lateBy is by how much a check may last longer before this machine has to assume that it was short of CPU itself.
	lateBy = 500 * time.Millisecond
	// parallel is how many checks run at a time, rechecks how many of these may be of nodes that are not known to be
	// reached and of which nothing new was heard: each may take as long as a check may, and there may be hundreds.
	// mostNodes is how many nodes are known at most.
	parallel, rechecks, mostNodes = 32, 24, 4096
	// rest is the longest wait of the loop.
	rest = time.Hour
)

// Options may all be left out.
type Options struct {
	// Report is called, from a goroutine of its own, with the name of a node that this machine has just found
	// unreachable, so that others probe it too.
	Report func(node string)
	// Check is Answers when nil.
	Check Check
	// Jitter returns a random part of a duration; nil means that of math/rand.
	Jitter func(time.Duration) time.Duration
	Logger *slog.Logger
}

// Watch is that view. Make it with New. Calls of its methods before Run are not lost.
type Watch struct {
	o    Options
	wake timers.Signal

	mu      sync.Mutex
	nodes   map[string]*state
	tell    func(string)
	down    map[string]bool // replaced, never changed
	changed chan struct{}   // closed when down is replaced
}

// state is what is known of a node.
type state struct {
	port     uint16
	verified bool          // this machine has reached it, so that a failure means something
	trip     time.Duration // how long it took to answer
	failed   int           // verifications that failed
	unknown  int           // how often the API did not have it
	checking bool
	heard    bool      // by gossip, since it was not reached
	due      time.Time // when it is checked next; zero: not at all
	checked  time.Time // the end of the last check
	until    time.Time // it is checked again and again until then
	down     time.Time // since when it is not reached; zero: it is
}

// New returns a Watch that knows no node.
func New(o Options) *Watch {
	if o.Check == nil {
		o.Check = CheckTCP
	}
	if o.Jitter == nil {
		o.Jitter = func(d time.Duration) time.Duration { return rand.N(d) }
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	return &Watch{o: o, tell: o.Report, wake: timers.NewSignal(), nodes: map[string]*state{}, changed: make(chan struct{})}
}

// OnUnreachable sets Options.Tell, of who is made after the Watch.
func (w *Watch) OnUnreachable(tell func(node string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell = tell
}

// NodeJoined says that a node was heard, and what its one port is.
func (w *Watch) NodeJoined(node string, port uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.nodes[node]
	switch {
	case s == nil && len(w.nodes) >= mostNodes:
		return
	case s == nil:
		s = &state{}
		w.nodes[node] = s
	}
	now := time.Now()
	soon := now.Add(w.o.Jitter(verifyWithin))
	switch {
	case !s.down.IsZero():
		s.due, s.heard = now, true
	case !s.verified && (s.due.IsZero() || s.unknown > 0 && s.due.After(soon)): // the API may have it by now
		s.due = soon
	}
	s.port, s.until, s.failed, s.unknown = port, time.Time{}, 0, 0
	w.wake.Send()
}

// NodeLeft says that a node has said good-bye, or that gossip has given it up: its program ends, and perhaps its
// machine, which no member probes any more.
func (w *Watch) NodeLeft(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.nodes[node]; s != nil && s.verified {
		now := time.Now()
		s.until = timers.Later(s.until, now.Add(afterBye))
		if s.due.IsZero() {
			s.due = now.Add(recheck)
		}
		w.wake.Send()
	}
}

// ProbeFailed says that a node did not answer this machine.
func (w *Watch) ProbeFailed(node string) { w.nominate(node, ownGap) }

// PeerReportedFailure says that a node did not answer another machine.
func (w *Watch) PeerReportedFailure(node string) { w.nominate(node, reportedGap) }

func (w *Watch) nominate(node string, gap time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.nodes[node]
	if s == nil || !s.verified || !s.down.IsZero() {
		return
	}
	due := timers.Later(time.Now(), s.checked.Add(gap))
	if s.due.IsZero() || due.Before(s.due) {
		s.due = due
		w.wake.Send()
	}
}

// Nodes are those that are not reached. The map is not changed.
func (w *Watch) Nodes() map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.down
}

// Changed returns a channel that is closed when Nodes changes next.
func (w *Watch) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// Run checks until ctx is done, and returns when no check is under way. addresses says where a node is, by the API;
// none of a Node that is not there, and such a one is forgotten.
func (w *Watch) Run(ctx context.Context, addresses func(node string) []netip.Addr) {
	var running sync.WaitGroup
	defer running.Wait()
	free := make(chan struct{}, parallel)
	for {
		for _, c := range w.dueCalls(addresses, parallel-len(free)) {
			free <- struct{}{}
			running.Go(func() {
				defer func() {
					<-free
					w.wake.Send()
				}()
				w.check(ctx, c)
			})
		}
		timer := time.NewTimer(w.pause(len(free)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-w.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// call is one check to be made.
type call struct {
	node     string
	s        *state
	at       []netip.AddrPort
	patience time.Duration
	heard    bool // state.heard when it began
}

// dueCalls returns up to most checks that are due.
func (w *Watch) dueCalls(addresses func(string) []netip.Addr, most int) []call {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	var out []call
	nodes, places := w.due(now)
	for _, node := range nodes {
		s := w.nodes[node]
		if len(out) == most || s.urgency() > news && places <= 0 {
			break
		}
		c := call{node: node, s: s, patience: firstPatience}
		for _, a := range addresses(node) {
			c.at = append(c.at, netip.AddrPortFrom(a, s.port))
			if s.port != kubeletPort {
				c.at = append(c.at, netip.AddrPortFrom(a, kubeletPort))
			}
		}
		if len(c.at) == 0 {
			w.unknown(node, s, now)
			continue
		}
		if s.verified && s.down.IsZero() {
			c.patience = patience + roundTrips*s.trip
		}
		if s.urgency() > news {
			places--
		}
		c.heard, s.checking, s.heard, s.due = s.heard, true, false, time.Time{}
		out = append(out, c)
	}
	return out
}

// due are the nodes to be checked now, the most urgent first, and of one urgency in the order in which they became due.
// Hundreds that are not reached, or that can never be reached from here, would hold the others up: when one more dies,
// or one comes back. So only as many of these are checked at a time as there are places.
func (w *Watch) due(now time.Time) (nodes []string, places int) {
	places = rechecks
	for node, s := range w.nodes {
		switch {
		case s.checking:
			if s.urgency() > news {
				places--
			}
		case !s.due.IsZero() && !s.due.After(now):
			nodes = append(nodes, node)
		}
	}
	slices.SortFunc(nodes, func(a, b string) int {
		x, y := w.nodes[a], w.nodes[b]
		return cmp.Or(cmp.Compare(x.urgency(), y.urgency()), x.due.Compare(y.due))
	})
	return nodes, places
}

// urgency says what a check of a node may tell, the more urgent the lower.
type urgency int

const (
	news     urgency = iota // that it is not reached any more, or that it is again
	firstTry                // whether it is reached at all
	nextTry                 // probably the same as the last time
)

func (s *state) urgency() urgency {
	switch {
	case s.verified && s.down.IsZero(), s.heard:
		return news
	case !s.verified && s.failed == 0:
		return firstTry
	}
	return nextTry
}

// unknown is for a node that the API does not have, or not yet. What was known of a Node that is gone does not count
// for one of its name that comes.
func (w *Watch) unknown(node string, s *state, now time.Time) {
	down := !s.down.IsZero()
	if s.unknown >= unknownMost {
		delete(w.nodes, node) // gossip says when it comes again
	} else {
		*s = state{port: s.port, due: now.Add(unknownAgain << s.unknown), unknown: s.unknown + 1}
	}
	if down {
		w.publish()
	}
}

// check is one check.
func (w *Watch) check(ctx context.Context, c call) {
	timed, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	began := time.Now()
	trip, ok := w.o.Check(timed, c.at)
	late := time.Since(began) > c.patience+lateBy
	w.mu.Lock()
	tell := w.tell
	found := w.decide(c, trip, ok, late || ctx.Err() != nil)
	w.mu.Unlock()
	if found && tell != nil {
		tell(c.node)
	}
}

// decide takes a check's outcome and says whether the node was found unreachable by it.
func (w *Watch) decide(c call, trip time.Duration, ok, void bool) (found bool) {
	s, now := c.s, time.Now()
	s.checking, s.checked = false, now
	if w.nodes[c.node] != s {
		return false
	}
	next := time.Time{}
	switch {
	case ok:
		if !s.verified {
			w.o.Logger.Debug("a node is reached from this machine; if it ever is not, Services go round it", "node", c.node)
		}
		s.verified, s.failed, s.trip = true, 0, min(trip, mostTrip)
		if !s.down.IsZero() {
			w.o.Logger.Info("a node is reached again; Services use it", "node", c.node, "after", now.Sub(s.down).Round(10*time.Millisecond))
			s.down = time.Time{}
			if !c.heard && !s.heard {
				s.until = now.Add(afterReturn)
			}
			w.publish()
		}
	case void: // this machine was short of CPU, or stops
		next = now.Add(recheck)
	case !s.verified:
		if s.failed++; s.failed < verifyMost {
			next = now.Add(verifyAgain << s.failed)
		}
	case s.down.IsZero():
		s.down, found = now, true
		w.o.Logger.Warn("a node is not reached from this machine; Services send nothing to it from here as long as they have other endpoints",
			"node", c.node)
		w.publish()
		next = now.Add(recheck)
	case now.Sub(s.down) > longThen:
		next = now.Add(recheckLong)
	default:
		next = now.Add(recheck)
	}
	if next.IsZero() && now.Before(s.until) {
		next = now.Add(recheck)
	}
	if s.due.IsZero() || !next.IsZero() && next.Before(s.due) {
		s.due = next
	}
	return found
}

// pause is how long the loop may sleep. When all checks that may run do, the end of one wakes it.
func (w *Watch) pause(running int) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, urgent, others, places := time.Now(), rest, rest, rechecks
	for _, s := range w.nodes {
		switch u := s.urgency(); {
		case s.checking:
			if u > news {
				places--
			}
		case s.due.IsZero():
		case u == news:
			urgent = min(urgent, s.due.Sub(now))
		default:
			others = min(others, s.due.Sub(now))
		}
	}
	switch {
	case running == parallel:
		return rest
	case places <= 0:
		return max(0, urgent)
	}
	return max(0, min(urgent, others))
}

// publish makes what is known the answer of Nodes.
func (w *Watch) publish() {
	down := map[string]bool{}
	for node, s := range w.nodes {
		if !s.down.IsZero() {
			down[node] = true
		}
	}
	if maps.Equal(down, w.down) {
		return
	}
	w.down = down
	close(w.changed)
	w.changed = make(chan struct{})
}
