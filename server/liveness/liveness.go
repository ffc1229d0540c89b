// SPDX-License-Identifier: Apache-2.0

// Package liveness judges, on the server that leads, which nodes are dead, and writes that down: Ready=Unknown on the
// Node, and its pods not ready, so that no Service sends to them.
//
// A node is heard every second over the connection that it keeps open (server/tunnels). One that is silent is checked:
// this server tries to reach its machine, and asks the other servers whether they hear or reach it. Only if all of that
// fails is the node dead at once; a machine whose kernel still answers has longer, since its pods may work while its
// agent does not. Taints and evictions are upstream's node lifecycle controller's, which acts on what is written here.
// The kubelet of a node that comes back undoes it with its next status.
package liveness

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	nodeutil "k8s.io/kubernetes/pkg/controller/util/node"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/server/tunnels"
)

const (
	// Quick is how long a node may be silent before it is checked. It says something every second
	// (nodetunnel.PingEvery).
	Quick = 1400 * time.Millisecond
	// quickFar is the same for a node that no server could ever connect to: the check cannot tell much.
	quickFar = 10 * time.Second
	// slow is how long a node may be silent whose machine answers: upstream's node-monitor-grace-period of 40 s before
	// 1.32, and the time in which a node has connected that is going to.
	slow = 40 * time.Second
	// CheckTimeout bounds a check.
	CheckTimeout = 800 * time.Millisecond
	// lateBy is by how much a check or a wait may last longer before this server has to assume that it was short of CPU
	// itself.
	lateBy = 500 * time.Millisecond
	// recheck is how often a node is checked that is silent and not dead, recheckFar the same for one without a
	// connection.
	recheck, recheckFar = time.Second, 10 * time.Second
	// retry is how long to wait after a write that failed.
	retry = time.Second
	// rest is the longest pause between two looks at all nodes.
	rest = 5 * time.Second
	// stall is by how much this server must have been late to have been paused as a whole: long enough for nodes to
	// close its connection, nearly.
	stall = 5 * time.Second
	// settle is how long the readers of connections get after this server was short of CPU.
	settle = 250 * time.Millisecond
	// parallel is how many nodes are checked, or written, at a time.
	parallel = 64
)

// Finding is what a check has found out, the better the higher.
type Finding int

// The findings.
const (
	Silent    Finding = iota
	Reachable         // the machine takes or refuses connections: its kernel works
	Heard             // a server hears the node itself
)

// Options are all required but Own, Now and Logger.
type Options struct {
	Client kubernetes.Interface
	// Nodes must be synced when Run is called.
	Nodes corelisters.NodeLister
	// Own is the node in this server's process.
	Own string
	// Contact says what this server hears of a node.
	Contact func(node string) (tunnels.Contact, bool)
	// Check finds out about a node that is silent, within CheckTimeout.
	Check    func(context.Context, *corev1.Node) Finding
	Recorder record.EventRecorder
	// Now is the time, of a clock that goes on while this process is paused; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Judge judges for one term of leadership.
type Judge struct {
	o     Options
	began time.Time
	// awake is when the judge last noticed that this process had been paused; nil: never.
	awake        atomic.Pointer[time.Time]
	nodes        map[string]*state
	deletedNodes map[string]time.Time // when Nodes were seen to be deleted
	suspect      chan string
	// undecided says that most nodes may have vanished together, and that it is not known yet.
	undecided bool
}

// state is what a judge knows of a node. It belongs to the judge's goroutine; while its own checks and writes run side
// by side, each has its own.
type state struct {
	uid   types.UID // another Node of the name is another machine's
	first time.Time // seen by this judge
	since time.Time // what was heard before then says nothing of this Node: there was another one of its name
	// heartbeat is the newest that the kubelet has reported, lease the newest renewal, and posted when this judge saw
	// one of them change: nodes' clocks do not count.
	heartbeat  metav1.Time
	lease      metav1.MicroTime
	leaseLasts time.Duration
	posted     time.Time
	// byLease says that the node proved to live by its lease alone after it was judged dead.
	byLease bool

	nominated time.Time     // a reporter thinks that the node is dead; zero: none does
	next      time.Time     // no check before
	checked   bool          // since it was heard, or nominated
	answers   bool          // the last check found that its machine answers, and no more
	late      bool          // the last check was late, so that it did not count
	limit     time.Duration // of its silence, when it was looked at last

	dead       time.Time // when it was judged dead; zero: it lives
	doubted    time.Time // when the check began that found it so
	podsDone   bool
	nodeDone   bool
	holdNodeTo time.Time // the Node is left alone until then
}

// New returns a judge.
func New(o Options) *Judge {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Judge{o: o, nodes: map[string]*state{}, deletedNodes: map[string]time.Time{}, suspect: make(chan string, parallel)}
}

// Suspect reports that a node may be dead. The judge checks it at once. It never blocks: what finds no room is found
// out without it, a second later.
func (j *Judge) Suspect(node string) {
	select {
	case j.suspect <- node:
	default:
	}
}

// Run judges until ctx is done.
func (j *Judge) Run(ctx context.Context) {
	j.began = j.o.Now()
	for ctx.Err() == nil {
		pause := j.round(ctx)
		due := j.o.Now().Add(pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case node := <-j.suspect:
			timer.Stop()
			if s := j.nodes[node]; s != nil && s.dead.IsZero() {
				s.nominated, s.next, s.checked = j.o.Now(), time.Time{}, false
			}
		case <-timer.C:
		}
		if late := j.o.Now().Sub(due); late > lateBy { // what nodes have sent may not have been read
			timers.Sleep(ctx, settle)
			j.noteDelay(late)
		}
	}
}

// noteDelay notes by how much something took longer than it can have. A whole process that was paused has heard no node
// meanwhile, and nodes have closed their connections to it: all of them get time again.
func (j *Judge) noteDelay(by time.Duration) {
	if by > stall {
		now := j.o.Now()
		j.awake.Store(&now)
		j.o.Logger.Warn("this server was paused; what it has not heard of nodes meanwhile does not count", "for",
			by.Round(time.Millisecond))
	}
}

// lastPause is when this process was last found to have been paused; zero: never.
func (j *Judge) lastPause() time.Time {
	if at := j.awake.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// round looks at all nodes once and returns when to look again.
func (j *Judge) round(ctx context.Context) (pause time.Duration) {
	nodes, err := j.o.Nodes.List(labels.Everything())
	if err != nil { // of a cache: it cannot be
		return retry
	}
	now := j.o.Now()
	pause = rest
	soon := func(d time.Duration) { pause = max(min(pause, d), 50*time.Millisecond) }
	var doubtful []*corev1.Node
	seen := map[string]bool{}
	for _, n := range nodes {
		seen[n.Name] = true
		if n.Name == j.o.Own {
			continue
		}
		s := j.observe(n, now)
		silence, limit := j.timeSinceHeard(n.Name, s, now)
		if s.limit = limit; limit > 0 { // if only for a moment: what it has written then is to be undone again
			j.revive(n.Name, s)
		}
		switch {
		case silence < limit:
			s.checked = false
			soon(limit - silence)
		case !s.dead.IsZero():
		case now.Before(s.next):
			soon(s.next.Sub(now))
		default:
			doubtful = append(doubtful, n)
		}
	}
	maps.DeleteFunc(j.nodes, func(name string, _ *state) bool {
		if !seen[name] {
			j.deletedNodes[name] = now
		}
		return !seen[name]
	})
	// what was heard before that does not count
	maps.DeleteFunc(j.deletedNodes, func(_ string, at time.Time) bool { return now.Sub(at) > slow })
	due := now.Add(pause) // when the first one is missed, however long checks and writes take until then
	pause = rest
	if len(doubtful) > 0 {
		first := j.firstOf(doubtful)
		j.check(ctx, first)
		if soon(recheck); len(first) < len(doubtful) {
			soon(0)
		}
	}
	if !j.write(ctx, nodes) {
		soon(retry)
	}
	if j.undecided {
		soon(settle)
	}
	soon(due.Sub(j.o.Now()))
	return pause
}

// firstOf are the nodes to be checked now: all of which nothing is known yet, the soonest missed first, so that those
// which have vanished together are judged together (holdBack); and of the others, the longest waiting first, no more
// than are checked at a time. Where hundreds are silent whose machines answer, they are checked again and again, and
// one more that dies would wait for all of them.
func (j *Judge) firstOf(doubtful []*corev1.Node) []*corev1.Node {
	again := func(n *corev1.Node) bool { return j.nodes[n.Name].checked }
	slices.SortStableFunc(doubtful, func(a, b *corev1.Node) int {
		x, y := j.nodes[a.Name], j.nodes[b.Name]
		switch {
		case !x.checked && y.checked:
			return -1
		case x.checked && !y.checked:
			return 1
		case x.checked:
			return x.next.Compare(y.next)
		}
		return cmp.Or(cmp.Compare(x.limit, y.limit), x.next.Compare(y.next))
	})
	known := slices.IndexFunc(doubtful, again)
	if known < 0 {
		return doubtful
	}
	return doubtful[:max(known, min(len(doubtful), parallel))]
}

// observe notes what a Node says of itself.
func (j *Judge) observe(n *corev1.Node, now time.Time) *state {
	s := j.nodes[n.Name]
	if s == nil || s.uid != n.UID {
		earlier := j.deletedNodes[n.Name]
		if s != nil {
			earlier = now
		}
		s = &state{uid: n.UID, first: now, since: latest(earlier, now.Add(-slow))}
		if r := readyOf(n); r != nil {
			s.heartbeat = r.LastHeartbeatTime
		}
		j.nodes[n.Name] = s
	}
	if r := readyOf(n); r != nil && r.Status != corev1.ConditionUnknown && !r.LastHeartbeatTime.Equal(&s.heartbeat) {
		s.heartbeat, s.posted = r.LastHeartbeatTime, now
	}
	return s
}

// contact is what this server hears of a node; ok is false if it has heard nothing of this Node, but perhaps of an
// earlier one of the name.
func (j *Judge) contact(name string, s *state) (c tunnels.Contact, ok bool) {
	c, ok = j.o.Contact(name)
	if !ok || !c.Last.After(s.since) {
		return tunnels.Contact{}, false
	}
	return c, true
}

// timeSinceHeard is how long nothing was heard of a node, and how long that is nothing to worry about.
func (j *Judge) timeSinceHeard(name string, s *state, now time.Time) (silence, limit time.Duration) {
	c, connected := j.contact(name, s)
	heard := latest(c.Last, s.posted)
	last := latest(heard, j.lastPause())
	switch listening := latest(j.began, j.lastPause()); {
	case !connected:
		// It is new, or its program is too old to connect, or this server's memory is: it gets the time to connect.
		last, limit = latest(last, s.first), slow
		if s.byLease {
			limit = max(slow, s.leaseLasts*5/4)
		}
	case c.Direct:
		limit = Quick
	case c.Last.Before(listening): // a check tells nothing of it, so it gets the time to connect again
		last, limit = latest(last, listening), slow
	default:
		limit = quickFar
	}
	if !s.nominated.IsZero() {
		if heard.After(s.nominated) {
			s.nominated = time.Time{}
		} else if c.Direct {
			limit = 0 // one that no server can connect to is given its time all the same
		}
	}
	if !s.dead.IsZero() && !heard.After(s.dead) {
		limit = 0 // nothing new
	}
	return now.Sub(last), limit
}

// waited is for how long this judge has heard nothing of a node.
func (j *Judge) waited(name string, s *state, now time.Time) time.Duration {
	c, _ := j.contact(name, s)
	return now.Sub(latest(latest(c.Last, s.posted), latest(s.first, j.lastPause())))
}

// revive forgets that a node was dead, if it was: it was heard since.
func (j *Judge) revive(name string, s *state) {
	if s.dead.IsZero() {
		return
	}
	j.o.Logger.Info("a node that was dead is heard again", "node", name, "after", j.o.Now().Sub(s.dead).Round(time.Millisecond))
	_, connected := j.contact(name, s)
	s.byLease, s.checked = !connected, false
	s.dead, s.podsDone, s.nodeDone, s.holdNodeTo = time.Time{}, false, false, time.Time{}
}

// check finds out which of the nodes are dead. A check during which this server was short of CPU does not count, unless
// the node was silent for so long that one that says no more than that its machine answers would do.
func (j *Judge) check(ctx context.Context, doubtful []*corev1.Node) {
	each(parallel, doubtful, func(n *corev1.Node) {
		s := j.nodes[n.Name]
		_, connected := j.contact(n.Name, s)
		if !connected && j.leaseRenewed(ctx, n.Name, s) {
			s.next = j.o.Now().Add(recheckFar)
			return
		}
		began := j.o.Now()
		finding := j.o.Check(ctx, n)
		if ctx.Err() != nil {
			return // the term is over, and nothing is known
		}
		now := j.o.Now()
		late := now.Sub(began) - CheckTimeout
		j.noteDelay(late)
		silence, limit := j.timeSinceHeard(n.Name, s, now)
		s.nominated, s.checked, s.answers, s.late = time.Time{}, true, finding == Reachable, false
		s.next = now.Add(recheck)
		patience := slow
		if !connected {
			s.next, patience = now.Add(recheckFar), max(slow, s.leaseLasts*5/4)
		}
		switch {
		case finding == Heard, silence < limit:
		case late > lateBy && j.waited(n.Name, s, now) <= patience: // after that it is no matter of a check any more
			s.next, s.late = time.Time{}, true
		case finding == Silent, j.waited(n.Name, s, now) > patience:
			s.dead, s.doubted = now, began
			j.o.Logger.Warn("a node is dead", "node", n.Name, "silent", silence.Round(10*time.Millisecond), "machine answers",
				finding == Reachable)
		}
	})
}

// leaseRenewed looks at the lease of a node that has no connection to this server, and says whether it was renewed
// since the last look. The first look finds what is renewed from then on.
func (j *Judge) leaseRenewed(ctx context.Context, node string, s *state) bool {
	began := j.o.Now()
	defer func() { j.noteDelay(j.o.Now().Sub(began) - writeTimeout) }()
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	lease, err := j.o.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, node, metav1.GetOptions{})
	if err != nil || lease.Spec.RenewTime == nil {
		return false
	}
	if d := lease.Spec.LeaseDurationSeconds; d != nil {
		s.leaseLasts = time.Duration(*d) * time.Second
	}
	renewed := !lease.Spec.RenewTime.Equal(&s.lease)
	s.lease = *lease.Spec.RenewTime
	if renewed {
		s.posted = j.o.Now()
	}
	return renewed
}

// each calls f for all items, so many of them side by side at most, and waits.
func each[T any](atOnce int, items []T, f func(T)) {
	workqueue.ParallelizeUntil(context.Background(), atOnce, len(items), func(i int) { f(items[i]) })
}

func latest(times ...time.Time) (out time.Time) {
	for _, t := range times {
		if t.After(out) {
			out = t
		}
	}
	return out
}

func readyOf(n *corev1.Node) *corev1.NodeCondition {
	_, r := nodeutil.GetNodeCondition(&n.Status, corev1.NodeReady)
	return r
}
