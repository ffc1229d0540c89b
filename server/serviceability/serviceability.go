// SPDX-License-Identifier: Apache-2.0

// Package serviceability closes the connections of nodes, and has this machine's programs fail over, while this server
// cannot serve them and another one would.
//
// It decides when that is so. The connections are the tunnels' (server/tunnels), the failover is localfailover's.
package serviceability

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// stalledAfter is how long a write may wait for the disk before nodes are sent to another server. Requests here
	// wait as long; but a disk that is merely slow must not break off what goes on between nodes and this server.
	stalledAfter = 3 * time.Second
	// diskPoll is how often that is checked.
	diskPoll = 500 * time.Millisecond
)

// Store is what a store says of itself.
type Store interface {
	Stalled() time.Duration
	OtherLeader() string
	Removed() bool
	CutOff() bool
}

// Options are what a server gives.
type Options struct {
	// Store is the server's; nil before it is open.
	Store func() Store
	// FailoverTargets are the other servers while one of them is to answer this machine's programs although this one
	// has not begun. SetFailedOver says that it does.
	FailoverTargets func() []string
	SetFailedOver   func()
	// Drain closes the connections of nodes and refuses new ones, or accepts them again.
	Drain func(bool)
	// FailOver has this machine's programs fail over, or not any more. It is called again when the leader is another.
	FailOver func(bool)
	Logger   *slog.Logger
}

// Run drains the connections of nodes while this server cannot serve them, until ctx is done, so that they fail over.
// What the programs of this machine ask is passed on to another server, also for its own node.
func Run(ctx context.Context, o Options) {
	for now := (state{}); ; {
		if !timers.Sleep(ctx, timers.Until(diskPoll)) {
			return
		}
		if now.unable && o.FailoverTargets() != nil {
			o.SetFailedOver()
		}
		before := now
		var why string
		if now, why = o.next(before); now == before {
			continue
		}
		switch {
		case !now.unable:
			o.Logger.Info("this server can serve nodes again: their connections are accepted")
		case !before.unable:
			o.Logger.Warn("the connections of nodes are drained until this server can serve them", "reason", why)
		default:
			o.Logger.Info("requests of this machine fail over to another server: that one leads now", "server", now.leader)
		}
		if now.unable != before.unable {
			o.Drain(now.unable)
		}
		o.FailOver(now.unable)
	}
}

// next is what is so now, after before, and why. A server whose store waits at its start has another one that was found
// to be ready.
func (o *Options) next(before state) (now state, why string) {
	if list := o.FailoverTargets(); len(list) > 0 {
		return state{unable: true, leader: list[0]}, "its store waits, and the server at " + list[0] + " is ready"
	}
	if store := o.Store(); store != nil {
		return before.next(store)
	}
	return state{}, ""
}

// state says whether requests to this server wait or fail while another server would serve them.
type state struct {
	unable bool
	leader string // the address of the other one that leads
}

// next is what is so now, after v, and why.
func (v state) next(store Store) (now state, why string) {
	leader, stalled := store.OtherLeader(), store.Stalled()
	switch {
	case stalled > stalledAfter && (leader != "" || v.unable): // the others may be electing one
		why = fmt.Sprintf("its disk has been stalled for %v", stalled.Round(time.Second))
	case store.Removed():
		why = "it was removed from the cluster; stop it"
	case store.CutOff():
		why = "it does not hear the leader, which another server reaches"
	default:
		return state{}, ""
	}
	return state{unable: true, leader: cmp.Or(leader, v.leader)}, why
}
