// SPDX-License-Identifier: Apache-2.0

// Package liveness decides, on the leader, which nodes are dead. It then writes Ready=Unknown to the Node and marks its
// pods not ready, so that no Service sends to them.
//
// Every second a node sends a ping over its connection to a server (server/tunnels). A node without a recent ping is
// checked: this server tries to reach its machine, and asks the other servers whether they have contact or can reach
// it. If all of that fails, the node is dead at once. A machine whose kernel still answers has more time, since its
// pods may work while its agent does not. Taints and evictions are left to upstream's node lifecycle controller, which
// acts on the Node's conditions. The kubelet of a node that returns undoes them with its next status.
//
// Its goroutines: the judge of nodes, once a second while nodes are connected, with 64 checks or writes at most; the
// search for nodes that can be reached directly, 32 at a time; other servers' questions, 5 s each at most.
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
	// Quick is how long a node may be without contact before it is checked. It sends a ping every second
	// (nodetunnel.PingEvery).
	Quick = 1400 * time.Millisecond
	// quickFar replaces Quick for a node that no server could ever reach directly: a check tells little about it.
	quickFar = 10 * time.Second
	// slowDeath is how long a node may be without contact while its machine answers. It is upstream's
	// node-monitor-grace-period of 40 s before 1.32. Within this time a node that is able to connect has connected.
	slowDeath = 40 * time.Second
	// CheckTimeout limits a check.
	CheckTimeout = 800 * time.Millisecond
	// lateBy is by how much a check or a wait may exceed its time before this server assumes that it was itself short
	// of CPU.
	lateBy = 500 * time.Millisecond
	// recheckInterval is the interval of checks of a node that has no contact and is not dead. recheckFarInterval is
	// the interval for a node without a connection.
	recheckInterval, recheckFarInterval = time.Second, 10 * time.Second
	// retryDelay is the pause after a failed write.
	retryDelay = time.Second
	// maxPause is the longest pause between two rounds over all nodes.
	maxPause = 5 * time.Second
	// stallThreshold is the delay from which on this whole process counts as paused: nearly long enough for nodes to
	// close their connections.
	stallThreshold = 5 * time.Second
	// catchUpTime is how long the readers of connections get after this server was short of CPU.
	catchUpTime = 250 * time.Millisecond
	// maxParallel is how many nodes are checked, or written, concurrently.
	maxParallel = 64
)

// Finding is the result of a check. A higher value is better.
type Finding int

// The findings.
const (
	Unresponsive Finding = iota
	Reachable            // the machine accepts or refuses connections: its kernel works
	Connected            // a server has contact with the node itself
)

// All fields of Options are required, except Own, Now and Logger.
type Options struct {
	Client kubernetes.Interface
	// Nodes must be synced when Run is called.
	Nodes corelisters.NodeLister
	// Own says whether a node runs in this server's process. Nil means that none does.
	Own func(node string) bool
	// Contact returns this server's contact with a node.
	Contact func(node string) (tunnels.Contact, bool)
	// Check finds out whether a node without contact is alive, within CheckTimeout.
	Check    func(context.Context, *corev1.Node) Finding
	Recorder record.EventRecorder
	// Now returns the time of a clock that advances while this process is paused. Nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// NodeMonitor decides which nodes are dead, during one term of leadership.
type NodeMonitor struct {
	o     Options
	began time.Time
	// awake is when the judge last noticed that this process had been paused, nil for never.
	awake        atomic.Pointer[time.Time]
	nodes        map[string]*state
	deletedNodes map[string]time.Time // when Nodes were found to be deleted
	suspect      chan string
	// undecided says that most nodes may have vanished at the same time, and that this is not yet certain.
	undecided bool
}

// state is a judge's knowledge of one node. It belongs to the judge's goroutine. While the judge's checks and writes
// run concurrently, each uses only its own node's state.
type state struct {
	uid          types.UID // another UID of this name means another machine
	firstSeen    time.Time // when this judge first saw the Node
	contactsFrom time.Time // contacts before then do not count: they may be of an earlier Node of this name
	// heartbeat is the newest heartbeat of the kubelet, and lease the newest renewal. posted is when this judge saw one
	// of them change. Nodes' own clocks are not used.
	heartbeat  metav1.Time
	lease      metav1.MicroTime
	leaseLasts time.Duration
	posted     time.Time
	// byLease says that the node was revived by its lease alone after it was found dead.
	byLease bool

	nominated    time.Time     // when a reporter suspected the node to be dead; zero: never
	nextCheck    time.Time     // no check before that
	checked      bool          // since the last contact or nomination
	answers      bool          // the last check only found that its machine answers
	checkWasLate bool          // the last check was late and did not count
	limit        time.Duration // allowed time without contact, in the last round

	dead       time.Time // when it was found dead; zero: it is alive
	checkBegun time.Time // begin of the check that found it dead
	podsDone   bool
	nodeDone   bool
	holdNodeTo time.Time // the Node is not written before that
}

// New returns a Judge.
func New(o Options) *NodeMonitor {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Own == nil {
		o.Own = func(string) bool { return false }
	}
	return &NodeMonitor{o: o, nodes: map[string]*state{}, deletedNodes: map[string]time.Time{}, suspect: make(chan string, maxParallel)}
}

// Suspect reports that a node may be dead. The judge checks it at once. Suspect never blocks: a report for which the
// channel has no space is dropped, and the judge notices a dead node itself a second later.
func (j *NodeMonitor) Suspect(node string) {
	select {
	case j.suspect <- node:
	default:
	}
}

// Run runs rounds until ctx is done, at once after each Suspect.
func (j *NodeMonitor) Run(ctx context.Context) {
	j.began = j.o.Now()
	for ctx.Err() == nil {
		pause := j.examineNodes(ctx)
		due := j.o.Now().Add(pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case node := <-j.suspect:
			timer.Stop()
			if s := j.nodes[node]; s != nil && s.dead.IsZero() {
				s.nominated, s.nextCheck, s.checked = j.o.Now(), time.Time{}, false
			}
		case <-timer.C:
		}
		if late := j.o.Now().Sub(due); late > lateBy { // pings of nodes may not have been read yet
			timers.Sleep(ctx, catchUpTime)
			j.handlePause(late)
		}
	}
}

// handlePause records by how much an operation exceeded its longest possible duration. A process that was paused as a
// whole has received nothing in the meantime, and nodes have closed their connections to it. All nodes then get their
// time again.
func (j *NodeMonitor) handlePause(by time.Duration) {
	if by > stallThreshold {
		now := j.o.Now()
		j.awake.Store(&now)
		j.o.Logger.Warn("this server was paused; missed contacts with nodes during that time do not count", "for",
			by.Round(time.Millisecond))
	}
}

// lastPause returns when this process was last found to have been paused, or zero.
func (j *NodeMonitor) lastPause() time.Time {
	if at := j.awake.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// examineNodes examines all nodes once and returns the pause until the next round.
func (j *NodeMonitor) examineNodes(ctx context.Context) (pause time.Duration) {
	nodes, err := j.o.Nodes.List(labels.Everything())
	if err != nil { // a cache's lister returns no error
		return retryDelay
	}
	now := j.o.Now()
	pause = maxPause
	soon := func(d time.Duration) { pause = max(min(pause, d), 50*time.Millisecond) }
	var doubtful []*corev1.Node
	seen := map[string]bool{}
	for _, n := range nodes {
		seen[n.Name] = true
		if j.o.Own(n.Name) {
			continue
		}
		s := j.observe(n, now)
		silence, limit := j.timeSinceContact(n.Name, s, now)
		if s.limit = limit; limit > 0 { // even for a moment: the written conditions have to be undone again
			j.revive(n.Name, s)
		}
		switch {
		case silence < limit:
			s.checked = false
			soon(limit - silence)
		case !s.dead.IsZero():
		case now.Before(s.nextCheck):
			soon(s.nextCheck.Sub(now))
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
	// earlier contacts then do not count any more
	maps.DeleteFunc(j.deletedNodes, func(_ string, at time.Time) bool { return now.Sub(at) > slowDeath })
	due := now.Add(pause) // when the first node has to be checked, however long checks and writes take
	pause = maxPause
	if len(doubtful) > 0 {
		first := j.firstOf(doubtful)
		j.check(ctx, first)
		if soon(recheckInterval); len(first) < len(doubtful) {
			soon(0)
		}
	}
	if !j.write(ctx, nodes) {
		soon(retryDelay)
	}
	if j.undecided {
		soon(catchUpTime)
	}
	soon(due.Sub(j.o.Now()))
	return pause
}

// firstOf returns the nodes to check now. These are all nodes that were not checked yet, those with the shortest limit
// first, so that nodes that vanished at the same time are judged in one round (suppressMassFailure). Up to a total of
// parallel the others follow, the longest waiting first. They are limited because hundreds of nodes without contact
// whose machines answer are checked again and again, and another node that dies would have to wait for all of them.
func (j *NodeMonitor) firstOf(doubtful []*corev1.Node) []*corev1.Node {
	again := func(n *corev1.Node) bool { return j.nodes[n.Name].checked }
	slices.SortStableFunc(doubtful, func(a, b *corev1.Node) int {
		x, y := j.nodes[a.Name], j.nodes[b.Name]
		switch {
		case !x.checked && y.checked:
			return -1
		case x.checked && !y.checked:
			return 1
		case x.checked:
			return x.nextCheck.Compare(y.nextCheck)
		}
		return cmp.Or(cmp.Compare(x.limit, y.limit), x.nextCheck.Compare(y.nextCheck))
	})
	known := slices.IndexFunc(doubtful, again)
	if known < 0 {
		return doubtful
	}
	return doubtful[:max(known, min(len(doubtful), maxParallel))]
}

// observe updates a node's state from its Node object.
func (j *NodeMonitor) observe(n *corev1.Node, now time.Time) *state {
	s := j.nodes[n.Name]
	if s == nil || s.uid != n.UID {
		earlier := j.deletedNodes[n.Name]
		if s != nil {
			earlier = now
		}
		s = &state{uid: n.UID, firstSeen: now, contactsFrom: latestTime(earlier, now.Add(-slowDeath))}
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

// contact returns this server's contact with a node. ok is false if there was none with this Node, even if there was
// with an earlier Node of its name.
func (j *NodeMonitor) contact(name string, s *state) (c tunnels.Contact, ok bool) {
	c, ok = j.o.Contact(name)
	if !ok || !c.Last.After(s.contactsFrom) {
		return tunnels.Contact{}, false
	}
	return c, true
}

// timeSinceContact returns the time since the last contact with a node, and how long that may be before the node is
// checked.
func (j *NodeMonitor) timeSinceContact(name string, s *state, now time.Time) (silence, limit time.Duration) {
	c, connected := j.contact(name, s)
	heard := latestTime(c.Last, s.posted)
	last := latestTime(heard, j.lastPause())
	switch listening := latestTime(j.began, j.lastPause()); {
	case !connected:
		// It is new, or its program is too old to connect, or this server has just started. It gets the time to
		// connect.
		last, limit = latestTime(last, s.firstSeen), slowDeath
		if s.byLease {
			limit = max(slowDeath, s.leaseLasts*5/4)
		}
	case c.Direct:
		limit = Quick
	case c.Last.Before(listening): // a check cannot tell, so it gets the time to connect again
		last, limit = latestTime(last, listening), slowDeath
	default:
		limit = quickFar
	}
	if !s.nominated.IsZero() {
		if heard.After(s.nominated) {
			s.nominated = time.Time{}
		} else if c.Direct {
			limit = 0 // a node that no server can reach directly still gets its time
		}
	}
	if !s.dead.IsZero() && !heard.After(s.dead) {
		limit = 0 // no contact since
	}
	return now.Sub(last), limit
}

// waited returns for how long this judge has had no contact with a node.
func (j *NodeMonitor) waited(name string, s *state, now time.Time) time.Duration {
	c, _ := j.contact(name, s)
	return now.Sub(latestTime(latestTime(c.Last, s.posted), latestTime(s.firstSeen, j.lastPause())))
}

// revive clears the death of a node that has had contact since.
func (j *NodeMonitor) revive(name string, s *state) {
	if s.dead.IsZero() {
		return
	}
	j.o.Logger.Info("a node that was dead is reachable again", "node", name, "after", j.o.Now().Sub(s.dead).Round(time.Millisecond))
	_, connected := j.contact(name, s)
	s.byLease, s.checked = !connected, false
	s.dead, s.podsDone, s.nodeDone, s.holdNodeTo = time.Time{}, false, false, time.Time{}
}

// check finds out which of the nodes are dead. A check during which this server was short of CPU does not count, except
// for a node that has had no contact for so long that it is dead even if its machine answers.
func (j *NodeMonitor) check(ctx context.Context, doubtful []*corev1.Node) {
	forEach(maxParallel, doubtful, func(n *corev1.Node) {
		s := j.nodes[n.Name]
		_, connected := j.contact(n.Name, s)
		if !connected && j.leaseRenewed(ctx, n.Name, s) {
			s.nextCheck = j.o.Now().Add(recheckFarInterval)
			return
		}
		began := j.o.Now()
		finding := j.o.Check(ctx, n)
		if ctx.Err() != nil {
			return // the term is over, and the result is unknown
		}
		now := j.o.Now()
		late := now.Sub(began) - CheckTimeout
		j.handlePause(late)
		silence, limit := j.timeSinceContact(n.Name, s, now)
		s.nominated, s.checked, s.answers, s.checkWasLate = time.Time{}, true, finding == Reachable, false
		s.nextCheck = now.Add(recheckInterval)
		allowed := slowDeath
		if !connected {
			s.nextCheck, allowed = now.Add(recheckFarInterval), max(slowDeath, s.leaseLasts*5/4)
		}
		switch {
		case finding == Connected, silence < limit:
		case late > lateBy && j.waited(n.Name, s, now) <= allowed: // after that the result of a check does not matter
			s.nextCheck, s.checkWasLate = time.Time{}, true
		case finding == Unresponsive, j.waited(n.Name, s, now) > allowed:
			s.dead, s.checkBegun = now, began
			j.o.Logger.Warn("a node is dead", "node", n.Name, "silent", silence.Round(10*time.Millisecond), "machine answers",
				finding == Reachable)
		}
	})
}

// leaseRenewed reads the lease of a node that has no connection to this server. It says whether the lease was renewed
// since the last call. The first call counts as a renewal, since it has nothing to compare with.
func (j *NodeMonitor) leaseRenewed(ctx context.Context, node string, s *state) bool {
	began := j.o.Now()
	defer func() { j.handlePause(j.o.Now().Sub(began) - writeTimeout) }()
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

// forEach calls f for all items, at most atOnce concurrently, and waits for all.
func forEach[T any](atOnce int, items []T, f func(T)) {
	workqueue.ParallelizeUntil(context.Background(), atOnce, len(items), func(i int) { f(items[i]) })
}

func latestTime(times ...time.Time) (out time.Time) {
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
