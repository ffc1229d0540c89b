// SPDX-License-Identifier: Apache-2.0

// Package reachability determines which nodes this machine cannot reach.
//
// Other parts nominate a node: gossip does, when a member did not reply to this machine or is reported not to have
// replied to another one. A check by this machine decides: does the node's kernel still answer a TCP connection, at an
// address that the API has for the node? So no member can make a node seem unreachable to others, and lost datagrams
// alone mark no node. A node that this machine has never reached is never marked, because it may be behind a router or
// a firewall. The package writes nothing anywhere, and does nothing while no node is nominated.
//
// Its goroutines: checks of nominated nodes, 32 at most, of eight attempts each; none at rest.
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
	// kubeletPort is checked besides the node's port for other machines: a firewall may close either.
	kubeletPort = 10250
	// recheckInterval is the interval of checks of an unreachable node. After longThen it is recheckLongInterval.
	recheckInterval, recheckLongInterval = time.Second, 5 * time.Second
	longThen                             = time.Minute
	// ownGap and reportedGap are the least times between the end of a check and the next one. ownGap applies when this
	// machine's own probe failed, and reportedGap when another member reported a failure.
	ownGap, reportedGap = 250 * time.Millisecond, 5 * time.Second
	// checkAfterLeave is how long a node is checked that has left gossip, or that gossip has declared dead. Its machine
	// may be about to stop.
	checkAfterLeave = 20 * time.Second
	// checkAfterReturn is how long a node is checked after it is reached again, or until gossip has received something
	// from it. Before that no member probes the node.
	checkAfterReturn = time.Minute
	// verifyWithin is the time after a node appears within which it is tried for the first time, so that not all
	// machines connect to a new one at once. verifyAgain is the wait after the first failure, which doubles.
	// maxVerifications is the number of tries.
	verifyWithin     = 2 * time.Second
	verifyAgain      = 10 * time.Second
	maxVerifications = 6
	// unknownAgain is the wait for the address of a node that the API does not have (yet). Gossip knows a machine
	// before the API does, and a starting machine knows members before it has a list from the API. The wait doubles,
	// and unknownMost is the number of waits.
	unknownAgain = time.Second
	unknownMost  = 9
	// lateBy is the delay of a check's end beyond its timeout from which this machine has to assume that it was short
	// of CPU time itself.
	lateBy = 500 * time.Millisecond
	// maxParallel is how many checks run at the same time. maxRechecks is how many of these may be checks of nodes that
	// are not known to be reachable and of which nothing new was received. Each of these may take a whole timeout, and
	// there may be hundreds. maxNodes is how many nodes are tracked at most.
	maxParallel, maxRechecks, maxNodes = 32, 24, 4096
	// maxPause is the longest wait of the loop.
	maxPause = time.Hour
)

// Options are all optional.
type Options struct {
	// Report is called, from a goroutine of its own, with the name of a node that this machine has just found
	// unreachable, so that other members probe the node too.
	Report func(node string)
	// Check makes a check. CheckTCP when nil.
	Check Check
	// Jitter returns a random fraction of a duration. nil means math/rand.
	Jitter func(time.Duration) time.Duration
	Logger *slog.Logger
}

// Watch tracks which nodes are unreachable. Make it with New. Methods may be called before Run.
type Watch struct {
	o    Options
	wake timers.Signal

	mu          sync.Mutex
	nodes       map[string]*state
	report      func(string)
	unreachable timers.Value[map[string]bool] // the maps are never changed
}

// state holds the results of the checks of a node.
type state struct {
	port        uint16
	verified    bool          // this machine has reached it, so that a failure is significant
	roundTrip   time.Duration // the time in which it replied
	failed      int           // number of failed verifications
	unknown     int           // how often the API had no address of it
	checking    bool
	gossipHeard bool      // gossip received something from it since it became unreachable
	nextCheck   time.Time // when it is checked next; zero: not at all
	checked     time.Time // the end of the last check
	checkUntil  time.Time // it is checked repeatedly until this time
	downSince   time.Time // since when it is unreachable; zero: it is reached
}

// New returns a Watch that tracks no node.
func New(o Options) *Watch {
	if o.Check == nil {
		o.Check = CheckTCP
	}
	if o.Jitter == nil {
		o.Jitter = func(d time.Duration) time.Duration { return rand.N(d) }
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	return &Watch{o: o, report: o.Report, wake: timers.NewSignal(), nodes: map[string]*state{}}
}

// OnUnreachable sets Options.Report, for a receiver that is made after the Watch.
func (w *Watch) OnUnreachable(tell func(node string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report = tell
}

// NodeJoined reports that gossip received something from a node, and the node's port.
func (w *Watch) NodeJoined(node string, port uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.nodes[node]
	switch {
	case s == nil && len(w.nodes) >= maxNodes:
		return
	case s == nil:
		s = &state{}
		w.nodes[node] = s
	}
	now := time.Now()
	soon := now.Add(w.o.Jitter(verifyWithin))
	switch {
	case !s.downSince.IsZero():
		s.nextCheck, s.gossipHeard = now, true
	case !s.verified && (s.nextCheck.IsZero() || s.unknown > 0 && s.nextCheck.After(soon)): // the API may have its address by now
		s.nextCheck = soon
	}
	s.port, s.checkUntil, s.failed, s.unknown = port, time.Time{}, 0, 0
	w.wake.Send()
}

// NodeLeft reports that a node has left gossip, or that gossip has declared it dead. Its program ends, and perhaps its
// machine, and no member probes it any more.
func (w *Watch) NodeLeft(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.nodes[node]; s != nil && s.verified {
		now := time.Now()
		s.checkUntil = timers.Later(s.checkUntil, now.Add(checkAfterLeave))
		if s.nextCheck.IsZero() {
			s.nextCheck = now.Add(recheckInterval)
		}
		w.wake.Send()
	}
}

// ProbeFailed reports that a node did not reply to this machine's probe.
func (w *Watch) ProbeFailed(node string) { w.nominate(node, ownGap) }

// PeerReportedFailure reports that a node did not reply to another machine's probe.
func (w *Watch) PeerReportedFailure(node string) { w.nominate(node, reportedGap) }

func (w *Watch) nominate(node string, gap time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.nodes[node]
	if s == nil || !s.verified || !s.downSince.IsZero() {
		return
	}
	due := timers.Later(time.Now(), s.checked.Add(gap))
	if s.nextCheck.IsZero() || due.Before(s.nextCheck) {
		s.nextCheck = due
		w.wake.Send()
	}
}

// Nodes returns the unreachable nodes. The map must not be changed.
func (w *Watch) Nodes() map[string]bool {
	down, _ := w.unreachable.Get()
	return down
}

// Changed returns a channel that is closed when Nodes changes next.
func (w *Watch) Changed() <-chan struct{} {
	_, changed := w.unreachable.Get()
	return changed
}

// Run makes checks until ctx is done, and returns when no check runs. The function addresses returns a node's addresses
// by the API. It returns none when there is no such Node, which is then removed.
func (w *Watch) Run(ctx context.Context, addresses func(node string) []netip.Addr) {
	var running sync.WaitGroup
	defer running.Wait()
	free := make(chan struct{}, maxParallel)
	for {
		for _, c := range w.dueCalls(addresses, maxParallel-len(free)) {
			free <- struct{}{}
			running.Go(func() {
				defer func() {
					<-free
					w.wake.Send()
				}()
				w.check(ctx, c)
			})
		}
		timer := time.NewTimer(w.nextPause(len(free)))
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

// call is a check of a node that will be made next.
type call struct {
	node        string
	s           *state
	addresses   []netip.AddrPort
	timeout     time.Duration
	gossipHeard bool // state.heard when the check began
}

// dueCalls returns the checks that are due, at most the given number.
func (w *Watch) dueCalls(addresses func(string) []netip.Addr, most int) []call {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	var out []call
	nodes, places := w.dueNodes(now)
	for _, node := range nodes {
		s := w.nodes[node]
		if len(out) == most || s.urgency() > newState && places <= 0 {
			break
		}
		c := call{node: node, s: s, timeout: firstCheckTimeout}
		for _, a := range addresses(node) {
			c.addresses = append(c.addresses, netip.AddrPortFrom(a, s.port))
			if s.port != kubeletPort {
				c.addresses = append(c.addresses, netip.AddrPortFrom(a, kubeletPort))
			}
		}
		if len(c.addresses) == 0 {
			w.unknown(node, s, now)
			continue
		}
		if s.verified && s.downSince.IsZero() {
			c.timeout = checkTimeout + roundTrips*s.roundTrip
		}
		if s.urgency() > newState {
			places--
		}
		c.gossipHeard, s.checking, s.gossipHeard, s.nextCheck = s.gossipHeard, true, false, time.Time{}
		out = append(out, c)
	}
	return out
}

// dueNodes returns the nodes that have to be checked now, the most urgent first, and with equal urgency in the order in
// which they became due. Hundreds of unreachable nodes would delay the check of one more that fails or returns. So the
// number of such checks at the same time is limited, and places is how many more may begin.
func (w *Watch) dueNodes(now time.Time) (nodes []string, places int) {
	places = maxRechecks
	for node, s := range w.nodes {
		switch {
		case s.checking:
			if s.urgency() > newState {
				places--
			}
		case !s.nextCheck.IsZero() && !s.nextCheck.After(now):
			nodes = append(nodes, node)
		}
	}
	slices.SortFunc(nodes, func(a, b string) int {
		x, y := w.nodes[a], w.nodes[b]
		return cmp.Or(cmp.Compare(x.urgency(), y.urgency()), x.nextCheck.Compare(y.nextCheck))
	})
	return nodes, places
}

// urgency says how urgent a check of a node is. A lower value is more urgent.
type urgency int

const (
	newState urgency = iota // that it is unreachable now, or reached again
	firstTry                // whether it can be reached at all
	nextTry                 // probably the same as before
)

func (s *state) urgency() urgency {
	switch {
	case s.verified && s.downSince.IsZero(), s.gossipHeard:
		return newState
	case !s.verified && s.failed == 0:
		return firstTry
	}
	return nextTry
}

// unknown handles a node that the API does not have (yet). It resets the node's state: what was known of a deleted Node
// does not apply to a new one with the same name.
func (w *Watch) unknown(node string, s *state, now time.Time) {
	down := !s.downSince.IsZero()
	if s.unknown >= unknownMost {
		delete(w.nodes, node) // NodeJoined adds it again
	} else {
		*s = state{port: s.port, nextCheck: now.Add(unknownAgain << s.unknown), unknown: s.unknown + 1}
	}
	if down {
		w.publish()
	}
}

func (w *Watch) check(ctx context.Context, c call) {
	timed, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	began := time.Now()
	trip, ok := w.o.Check(timed, c.addresses)
	late := time.Since(began) > c.timeout+lateBy
	w.mu.Lock()
	tell := w.report
	found := w.decide(c, trip, ok, late || ctx.Err() != nil)
	w.mu.Unlock()
	if found && tell != nil {
		tell(c.node)
	}
}

// decide records the result of a check, and says whether the check found the node unreachable.
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
		s.verified, s.failed, s.roundTrip = true, 0, min(trip, maxTrip)
		if !s.downSince.IsZero() {
			w.o.Logger.Info("a node is reached again; Services use it", "node", c.node,
				"after", now.Sub(s.downSince).Round(10*time.Millisecond))
			s.downSince = time.Time{}
			if !c.gossipHeard && !s.gossipHeard {
				s.checkUntil = now.Add(checkAfterReturn)
			}
			w.publish()
		}
	case void: // this machine was short of CPU time, or is stopping
		next = now.Add(recheckInterval)
	case !s.verified:
		if s.failed++; s.failed < maxVerifications {
			next = now.Add(verifyAgain << s.failed)
		}
	case s.downSince.IsZero():
		s.downSince, found = now, true
		w.o.Logger.Warn("a node is not reached from this machine; Services send nothing to it from here as long as they have other endpoints",
			"node", c.node)
		w.publish()
		next = now.Add(recheckInterval)
	case now.Sub(s.downSince) > longThen:
		next = now.Add(recheckLongInterval)
	default:
		next = now.Add(recheckInterval)
	}
	if next.IsZero() && now.Before(s.checkUntil) {
		next = now.Add(recheckInterval)
	}
	if s.nextCheck.IsZero() || !next.IsZero() && next.Before(s.nextCheck) {
		s.nextCheck = next
	}
	return found
}

// nextPause returns how long the loop may wait. When the maximum number of checks runs, the end of one of them wakes
// the loop.
func (w *Watch) nextPause(running int) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, urgent, others, places := time.Now(), maxPause, maxPause, maxRechecks
	for _, s := range w.nodes {
		switch u := s.urgency(); {
		case s.checking:
			if u > newState {
				places--
			}
		case s.nextCheck.IsZero():
		case u == newState:
			urgent = min(urgent, s.nextCheck.Sub(now))
		default:
			others = min(others, s.nextCheck.Sub(now))
		}
	}
	switch {
	case running == maxParallel:
		return maxPause
	case places <= 0:
		return max(0, urgent)
	}
	return max(0, min(urgent, others))
}

// publish updates the result of Nodes.
func (w *Watch) publish() {
	down := map[string]bool{}
	for node, s := range w.nodes {
		if !s.downSince.IsZero() {
			down[node] = true
		}
	}
	if !maps.Equal(down, w.Nodes()) {
		w.unreachable.Set(down)
	}
}
