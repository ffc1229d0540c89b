// SPDX-License-Identifier: Apache-2.0

// Package serviceability drains the connections of nodes, and makes this machine's programs fail over, while this
// server cannot serve them and another one can. It reports to nodes whether this server is ready.
//
// It decides when that is so. The connections belong to the tunnels (server/tunnels). Package localfailover does the
// failover.
package serviceability

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/nodetunnel"
)

const (
	// stalledAfter is how long a write may wait for the disk before the connections of nodes are drained. Requests here
	// wait as long. But a disk that is only slow must not interrupt connections between nodes and this server.
	stalledAfter = 3 * time.Second
	// diskPoll is how often the disk is checked.
	diskPoll = 500 * time.Millisecond
	// unreadyAfter is for how long this server has had no leader before nodes learn of it, and for how long it has had
	// one again. An election takes a second or two, and costs no node a move.
	unreadyAfter = 3 * time.Second
)

// Store is the part of the store that shows its health.
type Store interface {
	Stalled() time.Duration
	OtherLeader() string
	Removed() bool
	CutOff() bool
	// ClockOff says whether this machine's clock is so wrong that this server refuses valid certificates.
	ClockOff() (by time.Duration, off bool)
	// WithoutLeader returns since when this server has had no leader that it can use, the zero time while it has one.
	WithoutLeader() (since time.Time, changed <-chan struct{})
}

// Options are the parameters of Run.
type Options struct {
	// Store returns the server's store, nil before it is open.
	Store func() Store
	// FailoverTargets returns the other servers while one of them serves this machine's programs because this server's
	// store waits. SetFailedOver records that it does.
	FailoverTargets func() []string
	SetFailedOver   func()
	// Drain closes the connections of nodes and refuses new ones, or accepts them again.
	Drain func(bool)
	// FailOver begins or ends the failover of this machine's programs. It is called again when the leader changes.
	FailOver func(bool)
	// SetReadiness tells nodes why they should use another server that is ready, such as nodetunnel.NoLeader. The
	// reason is empty when this server is ready. Nodes keep their connections to it.
	SetReadiness func(reason string)
	Logger       *slog.Logger
}

// Run drains the connections of nodes while this server cannot serve them, until ctx is done, so that the nodes fail
// over. The requests of this machine's programs, also of its own node, are passed on to another server.
func Run(ctx context.Context, o Options) {
	ready := readiness{reported: nodetunnel.NoLeader}
	o.SetReadiness(ready.reported)
	for now := (state{}); ; {
		if !timers.Sleep(ctx, timers.Until(diskPoll)) {
			return
		}
		if now.unable && o.FailoverTargets() != nil {
			o.SetFailedOver()
		}
		if ready.update(o.unready(), time.Now()) {
			o.Logger.Info("nodes are informed whether this server is ready for them", "reason", cmp.Or(ready.reported, "it is ready"))
			o.SetReadiness(ready.reported)
		}
		before := now
		var why string
		if now, why = o.currentState(before); now == before {
			continue
		}
		switch {
		case !now.unable:
			o.Logger.Info("this server can serve nodes again: their connections are accepted")
		case !before.unable:
			o.Logger.Warn("the connections of nodes are drained until this server can serve them", "reason", why)
		default:
			o.Logger.Info("requests of this machine fail over to another server, which leads now", "server", now.leader)
		}
		if now.unable != before.unable {
			o.Drain(now.unable)
		}
		o.FailOver(now.unable)
	}
}

// currentState returns the state that follows before, and the reason. While this server's store waits at its start, the
// state comes from a ready server that was found.
func (o *Options) currentState(before state) (now state, why string) {
	if list := o.FailoverTargets(); len(list) > 0 {
		return state{unable: true, leader: list[0]}, "its store waits, and the server at " + list[0] + " is ready"
	}
	if store := o.Store(); store != nil {
		return before.nextState(store)
	}
	return state{}, ""
}

// unready returns the reason why this server is not ready for clients, or "".
func (o *Options) unready() string {
	store := o.Store()
	if store == nil {
		return nodetunnel.NoLeader
	}
	if _, off := store.ClockOff(); off {
		return nodetunnel.ClockOff
	}
	if since, _ := store.WithoutLeader(); !since.IsZero() {
		return nodetunnel.NoLeader
	}
	return ""
}

// readiness is the readiness of this server that was last reported to nodes.
type readiness struct {
	reported string    // the reason why it is not ready, or ""
	differs  time.Time // since when the reason has been another one; zero if it has not
	wasReady bool      // it was ready before
}

// update takes the present reason. It returns whether nodes have to receive it: it has lasted, or is a wrong clock, or
// this server has not been ready before.
func (r *readiness) update(reason string, now time.Time) bool {
	if reason == r.reported {
		r.differs = time.Time{}
		return false
	}
	if r.differs.IsZero() {
		r.differs = now
	}
	if r.wasReady && reason != nodetunnel.ClockOff && now.Sub(r.differs) < unreadyAfter {
		return false
	}
	r.reported, r.differs, r.wasReady = reason, time.Time{}, r.wasReady || reason == ""
	return true
}

// state says whether requests to this server wait or fail while another server can serve them.
type state struct {
	unable bool
	leader string // the address of the other server that leads
}

// nextState returns the state that follows v, and the reason.
func (v state) nextState(store Store) (now state, why string) {
	leader, stalled := store.OtherLeader(), store.Stalled()
	switch {
	case stalled > stalledAfter && (leader != "" || v.unable): // the others may be electing a leader
		why = fmt.Sprintf("its disk has been stalled for %v", stalled.Round(time.Second))
	case store.Removed():
		why = "it was removed from the cluster; stop it"
	case store.CutOff():
		why = "it receives nothing from the leader, which another server reaches"
	default:
		return state{}, ""
	}
	return state{unable: true, leader: cmp.Or(leader, v.leader)}, why
}
