// SPDX-License-Identifier: Apache-2.0

// Package netpolicy enforces NetworkPolicies on one node: it keeps the nftables table `inet coracle-policy` up to date
// with the API, for the pods that have their network on this node. DESIGN.md has the reasons.
//
// Desired computes that table from a State and is pure. The Enforcer collects the State and writes differences. The
// package owns that table and nothing else in the kernel. The table stays when an Enforcer stops, so that restricted
// pods are never open. It exists only while some pod of the node is restricted. The package never writes to the API,
// and never enters a pod.
//
// Its goroutines: its loop, every 5 s while there are rules; one that follows the kernel's tables; one that waits for
// first lists.
package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// Options configure an Enforcer. Informers are required, with Policies and AllNodes.
type Options struct {
	// Informers are the node's shared caches, which the caller runs once the Enforcer is made.
	Informers *netinformers.Informers
	// DNS has the addresses at which pods of this node reach the cluster's DNS. It is zero where there is none.
	DNS DNS
	// Limits are DefaultLimits if they are the zero value.
	Limits Limits
	// StateFile stores the rules between two runs, in a folder that a reboot empties. "" means that they are not
	// stored.
	StateFile string
	// Part is the status line of `coracle status`; nil for none.
	Part *status.Part
	// Logger is klog's own if it is the zero value.
	Logger klog.Logger
}

const (
	// minPause and maxPause limit the pause after a change of the table, which is pauseFactor times as long as the
	// change took. A pod that waits for its rules ends the pause.
	minPause    = 20 * time.Millisecond
	maxPause    = time.Second
	pauseFactor = 9
	// retryPause is how long to wait after a failed sync before the next one.
	retryPause = 2 * time.Second
	// guardPeriod is the interval of checks whether another program has changed the table. The kernel reports a
	// deletion at once.
	guardPeriod = 5 * time.Second
	// admitTimeout limits how long a pod's start waits. The kubelet allows several minutes for the whole call, and
	// starts another attempt when one fails.
	admitTimeout = 10 * time.Second
)

// Enforcer keeps the table. Make one with New.
type Enforcer struct {
	o         Options
	log       klog.Logger
	watch     *watch
	table     table
	guard     time.Duration // guardPeriod, except in tests
	admitWait time.Duration // admitTimeout, except in tests
	// Each has one pending wake-up for any number of changes. deletions receives the kernel's events of the table's
	// deletion.
	wake, urgentWake, deletions timers.Signal

	mu                sync.Mutex
	sandboxes         map[string]Sandbox
	waiters           map[string]*waiter
	written           bool                 // the table was written in this run; only Run's loop uses it
	refusedNamespaces map[string]refusedAt // by namespace; only Run's loop uses it
	writeErr          error                // of the last attempt to write the table
	loggedBudget      string               // the last logged message about budgets
}

// waiter is the start of a pod, which waits until the pod's rules are in effect.
type waiter struct {
	done    chan struct{} // closed when they are in effect
	unknown bool          // the API had not shown the pod at the last sync
}

// New connects an Enforcer to the informers. It changes nothing in the kernel yet.
func New(o Options) (*Enforcer, error) {
	if o.Informers == nil {
		return nil, errors.New("netpolicy: Informers are required")
	}
	if o.Limits == (Limits{}) {
		o.Limits = DefaultLimits()
	}
	if o.Logger.GetSink() == nil {
		o.Logger = klog.Background()
	}
	e := &Enforcer{
		o: o, log: o.Logger.WithName("netpolicy"), guard: guardPeriod, admitWait: admitTimeout,
		wake: timers.NewSignal(), urgentWake: timers.NewSignal(), deletions: timers.NewSignal(),
		sandboxes: map[string]Sandbox{}, waiters: map[string]*waiter{}, refusedNamespaces: map[string]refusedAt{},
	}
	var err error
	if e.watch, err = follow(o.Informers, e.wake.Send); err != nil {
		return nil, fmt.Errorf("netpolicy: %w", err)
	}
	return e, nil
}

// Restore adds the pods that have a network on this node from an earlier run. Call it before Run.
func (e *Enforcer) Restore(all []Sandbox) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range all {
		e.sandboxes[b.ID] = b
	}
}

// Admit returns when a pod's rules are in effect, so that it may get its network. After an error the pod must not get
// it, and the caller has to call Release.
func (e *Enforcer) Admit(ctx context.Context, b Sandbox) error {
	w := &waiter{done: make(chan struct{})}
	e.mu.Lock()
	e.sandboxes[b.ID] = b
	if e.watch.hasNoPolicies() && e.hasNoTable() {
		e.mu.Unlock()
		return nil // no pod is restricted
	}
	e.waiters[b.ID] = w
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.waiters, b.ID)
	}()
	e.urgentWake.Send()
	timeout := time.NewTimer(e.admitWait)
	defer timeout.Stop()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the rules of the pod's NetworkPolicies: %w", ctx.Err())
	case <-timeout.C:
		return fmt.Errorf("the rules of the NetworkPolicies for pod %s/%s are not in force: %s; the pod gets no network without them, "+
			"try again later",
			b.Namespace, b.Name, e.waitReason(w))
	}
}

// waitReason returns the reason why a pod still waits.
func (e *Enforcer) waitReason(w *waiter) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case !e.watch.complete():
		return "the node has not learnt the cluster's policies from the API yet"
	case w.unknown:
		return "the node has not heard of this pod from the API yet"
	case e.writeErr != nil:
		return e.writeErr.Error()
	}
	return "it takes long to compute them"
}

// Release records that a sandbox has no network any more.
func (e *Enforcer) Release(id string) {
	e.mu.Lock()
	_, known := e.sandboxes[id]
	delete(e.sandboxes, id)
	e.mu.Unlock()
	if known {
		e.wake.Send()
	}
}

// hasNoTable reports whether the kernel is known to have no table of ours. The caller holds mu.
func (e *Enforcer) hasNoTable() bool { return e.table.absent.Load() }

// Run keeps the table up to date until ctx is done. The table stays. Run may be called again when the first call has
// returned.
func (e *Enforcer) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { e.watch.run(ctx, e.wake.Send) })
	nft.FollowDeletions(ctx, &wg, e.deletions, func(err error) {
		e.log.Info("The kernel does not say when another program removes the nftables table of NetworkPolicies; it is checked now and then",
			"err", err, "every", e.guard)
	}, kernelTable)
	if err := e.reinstate(ctx); err != nil && ctx.Err() == nil {
		e.log.Error(err, "Until a server answers, what NetworkPolicies forbid may be possible")
	}
	defer func() {
		if err := e.save(); err != nil {
			e.log.Error(err, "The rules stay in force; if another program removes them before the next start, they come back when a "+
				"server answers")
		}
	}()
	guard := time.NewTicker(e.guard)
	defer guard.Stop()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		case <-e.urgentWake:
		case <-retry.C:
		case <-e.deletions:
			if e.table.intact() {
				continue
			}
			e.log.Info("The nftables table of NetworkPolicies was removed by another program; writing it again")
		case <-guard.C:
			if e.table.intact() {
				continue
			}
			e.log.Info("The nftables table of NetworkPolicies was changed by another program; writing it again")
		}
		if !e.watch.complete() {
			continue
		}
		pause := e.sync(ctx)
		switch {
		case pause == retryPause:
			retry.Reset(retryPause)
		case len(e.refusedNamespaces) > 0:
			retry.Reset(refusedFor)
		}
		rest := time.NewTimer(min(pause, maxPause))
		select {
		case <-ctx.Done():
		case <-rest.C:
		case <-e.urgentWake:
			e.urgentWake.Send() // for the select above
		case <-e.deletions:
			e.deletions.Send()
		}
		rest.Stop()
	}
}

// sync computes the table, writes the difference, and returns how long to pause.
func (e *Enforcer) sync(ctx context.Context) time.Duration {
	start := time.Now()
	s, err := e.state()
	if err != nil {
		return retryPause // lists of caches in memory do not fail
	}
	s.Refused = e.refusals()
	r := Desired(s, e.o.Limits)
	err = e.table.apply(ctx, r.Ruleset)
	if err != nil && ctx.Err() == nil && e.rejectedAmong(ctx, r, checkNFT) {
		s.Refused = e.refusals()
		r = Desired(s, e.o.Limits)
		err = e.table.apply(ctx, r.Ruleset)
	}
	if ctx.Err() != nil {
		return 0
	}
	e.report(r, err)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.writeErr = err
	if err != nil {
		e.log.Error(err, "NetworkPolicies are out of date on this node; the rules from before stay in force, trying again", "after",
			retryPause)
		return retryPause
	}
	if !e.written {
		e.written = true
		if err := e.removeSaved(); err != nil {
			e.log.Error(err, "It is replaced at the end of this run")
		}
	}
	for _, b := range s.Sandboxes {
		w := e.waiters[b.ID]
		if w == nil || !slices.Equal(b.IPs, e.sandboxes[b.ID].IPs) || b.UID != e.sandboxes[b.ID].UID {
			continue
		}
		if w.unknown = r.Unknown[b.ID]; !w.unknown {
			close(w.done)
			delete(e.waiters, b.ID)
		}
	}
	return min(max(minPause, pauseFactor*time.Since(start)), maxPause)
}

func (e *Enforcer) state() (State, error) {
	s, err := e.watch.state()
	s.DNS = e.o.DNS
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Sandboxes = slices.Collect(maps.Values(e.sandboxes))
	return s, err
}

// report updates the line in `coracle status`.
func (e *Enforcer) report(r Result, err error) {
	var words []string
	for _, namespace := range slices.Sorted(maps.Keys(r.OverBudget)) {
		words = append(words, fmt.Sprintf("the policies of namespace %s cannot be enforced (%s): its pods that they restrict have no "+
			"connections on this node; "+
			"other namespaces are not affected; write fewer or simpler policies there", namespace, r.OverBudget[namespace]))
	}
	budget := strings.Join(words, ". ")
	if budget != e.loggedBudget {
		e.loggedBudget = budget
		if budget != "" {
			e.log.Info("NetworkPolicies are over the budget", "what", budget)
		}
	}
	switch {
	case err != nil:
		e.o.Part.Set(status.Degraded, "policies are out of date on this node, what was in force stays in force: "+err.Error())
	case budget != "":
		e.o.Part.Set(status.Degraded, budget)
	default:
		e.o.Part.Set(status.Running, "")
	}
}

var allObjects = labels.Everything()
