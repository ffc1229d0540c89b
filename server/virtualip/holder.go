// SPDX-License-Identifier: Apache-2.0

package virtualip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/vip"
)

const (
	// leaderLease is for how long a leader answers for a virtual address after it began to ask a majority whether it
	// leads.
	leaderLease = 500 * time.Millisecond
	// leaderWait is how long a new leader is silent. Its predecessor may answer for leaderLease from a moment at which
	// a majority had not elected anybody else, which is before this one was elected. A tenth more is for clocks of
	// different speed.
	leaderWait = leaderLease + leaderLease/10
	// poll is how often the machine's interfaces and translations are looked at: addresses come and go, and other
	// programs flush nftables. Only where the cluster has a virtual address.
	poll = 10 * time.Second
	// probeAgain is how long after another machine answered for an address that is new it is looked for again.
	probeAgain = 15 * time.Second
	// transferAfter is how long a leader that has no link for any virtual address waits before another server leads,
	// and transferAgain how long it leads regardless when the leadership comes back: maybe none has a link.
	transferAfter = 10 * time.Second
	transferAgain = 10 * time.Minute
	// transferTimeout bounds the question whether a server will lead.
	transferTimeout = 2 * time.Second
	// conflictShown is for how long a conflict stays in the status.
	conflictShown = time.Minute
)

// holder announces the virtual addresses while this server leads, and keeps the translations always: a client that
// has not heard yet that the address has moved is served here, too.
type holder struct {
	v     *Addresses
	store Store
	log   *slog.Logger
	// links lists the machine's interfaces, probe looks for an address, announce answers for it: vip's.
	links    func() ([]vip.Link, error)
	probe    func(context.Context, vip.Interface, netip.Addr) error
	announce func(context.Context, vip.Announcement) error
	shuffle  func(n int, swap func(i, j int))

	lead       raftstore.Leadership
	since      time.Time // of lead
	handed     time.Time // when another server was made to lead
	interfaces map[netip.Addr]vip.Interface
	trouble    []string // of the last look
	reported   bool     // there is a line in the status
	redirects  []vip.Redirect
	stop       func() // ends what is announced, and waits
	announced  map[netip.Addr]vip.Interface
	ended      chan error // capacity 1: one of them ended by itself; what the others say then needs no second look

	mu       sync.Mutex
	conflict map[netip.Addr]otherUse
}

// otherUse is another machine's use of an address.
type otherUse struct {
	by net.HardwareAddr
	at time.Time
}

// Store is what of the store says who leads.
type Store interface {
	confirmer
	Members() []raftstore.Member
	MoveLeader(ctx context.Context, id uint64) error
}

func newHolder(v *Addresses, store Store) *holder {
	return &holder{v: v, store: store, log: v.o.Logger, links: vip.Links, probe: vip.Probe, announce: vip.Announce, shuffle: rand.Shuffle,
		stop: func() {}, conflict: map[netip.Addr]otherUse{}}
}

// run ends when ctx does; nothing is announced any more then, and no translation is left.
func (h *holder) run(ctx context.Context, leadership <-chan raftstore.Leadership) {
	defer func() {
		h.quiet()
		_ = h.redirect(nil) // it has logged
	}()
	_ = h.redirect(nil) // removes what a killed process has left; a failure has been logged
	for {
		h.reconcile(ctx)
		var again <-chan time.Time
		if len(h.v.Kept()) > 0 {
			again = time.After(poll)
		}
		select {
		case <-ctx.Done():
			return
		case lead, open := <-leadership:
			if !open {
				leadership = nil
			}
			h.lead, h.since = lead, time.Now()
			h.quiet()
		case <-h.v.changed:
		case err := <-h.ended:
			h.log.Warn("a virtual address is not announced any more; it is tried again", "error", err)
			h.quiet()
			timers.Sleep(ctx, time.Second) // the reason may last
		case <-again:
		}
	}
}

// reconcile makes everything as it has to be now.
func (h *holder) reconcile(ctx context.Context) {
	h.interfaces, h.trouble = h.find(h.v.Kept())
	redirects, err := h.v.redirects(h.interfaces)
	if err == nil && h.v.o.Redirect != nil && slices.Equal(redirects, h.redirects) && len(redirects) > 0 {
		if there, lookErr := vip.RedirectsThere(redirects); lookErr == nil && !there {
			h.redirects = nil
		}
	}
	if err == nil && !slices.Equal(redirects, h.redirects) {
		err = h.redirect(redirects)
	}
	if err != nil {
		h.trouble = append(h.trouble, err.Error())
	}
	switch {
	case !h.lead.Leader:
		h.quiet()
	case len(h.interfaces) == 0:
		h.quiet()
		h.transfer(ctx)
	case !maps.Equal(h.interfaces, h.announced):
		h.quiet()
		h.stop, h.announced = h.start(ctx), h.interfaces
	}
	h.show()
}

// transfer makes another server lead when this one has led for a while and has no link for any of the addresses. Which
// one has is not known; it hands over in its turn.
func (h *holder) transfer(ctx context.Context) {
	if len(h.v.Kept()) == 0 || time.Since(h.since) < transferAfter || (!h.handed.IsZero() && time.Since(h.handed) < transferAgain) {
		return
	}
	others := slices.DeleteFunc(h.store.Members(), func(m raftstore.Member) bool { return m.Self || !m.Voter })
	h.shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	for _, m := range others {
		within, cancel := context.WithTimeout(ctx, transferTimeout)
		err := h.store.MoveLeader(within, m.ID)
		cancel()
		if err == nil {
			h.handed = time.Now()
			h.log.Info("this server has no link for the cluster's virtual address; another one leads now", "other", m.Address)
			return
		}
		h.log.Debug("a server cannot lead in place of this one, which has no link for the cluster's virtual address", "other", m.Address,
			"error", err)
	}
}

// quiet ends what is announced. Nothing is sent any more when it returns.
func (h *holder) quiet() {
	h.stop()
	h.stop, h.announced = func() {}, nil
}

func (h *holder) redirect(redirects []vip.Redirect) error {
	if h.v.o.Redirect == nil {
		return nil
	}
	err := h.v.o.Redirect(redirects)
	if err != nil {
		h.log.Warn("the translations for virtual addresses could not be set", "error", err)
		return err
	}
	h.redirects = redirects
	return nil
}

func (h *holder) find(addresses []netip.Addr) (map[netip.Addr]vip.Interface, []string) {
	if len(addresses) == 0 {
		return nil, nil
	}
	links, err := h.links()
	if err != nil {
		return nil, []string{err.Error()}
	}
	interfaces, trouble := map[netip.Addr]vip.Interface{}, []string(nil)
	for _, a := range addresses {
		p, err := vip.Find(links, a, h.v.o.Interface)
		if err != nil {
			trouble = append(trouble, err.Error()+". This server does not answer for it, also when it leads")
			continue
		}
		interfaces[a] = p
	}
	return interfaces, trouble
}

// start announces the addresses for this term, when the wait of a new leader is over, until the function that it
// returns is called.
func (h *holder) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	h.ended = ended
	var announcing sync.WaitGroup
	term, wait := h.lead.Term, time.Until(h.since.Add(leaderWait))
	for a, p := range h.interfaces {
		announcing.Go(func() {
			if !timers.Sleep(ctx, wait) {
				return
			}
			if err := h.prove(ctx, a, p); err != nil {
				select {
				case ended <- err:
				default:
				}
				return
			}
			h.log.Info("this server answers for a virtual address", "address", a, "interface", p.Name, "term", term)
			err := h.announce(ctx, vip.Announcement{
				Address: a, Interface: p, Logger: h.log,
				Confirm:  func(ctx context.Context) (vip.Moment, error) { return confirmLead(ctx, h.store, term) },
				Conflict: func(other net.HardwareAddr) { h.noteConflict(a, other) },
			})
			if err == nil {
				return
			}
			select {
			case ended <- err:
			default:
			}
		})
	}
	return func() {
		cancel()
		announcing.Wait()
	}
}

// prove returns when no machine has an address that is new to the cluster, or ctx is done. The wait of a new leader is
// over: none of the other servers answers for it.
func (h *holder) prove(ctx context.Context, a netip.Addr, p vip.Interface) error {
	for h.v.toProve(a) && ctx.Err() == nil {
		err := h.probe(ctx, p, a)
		var used *vip.InUseError
		switch {
		case err == nil:
			h.v.proven(a)
		case ctx.Err() != nil:
		case errors.As(err, &used):
			h.noteConflict(a, used.By)
			timers.Sleep(ctx, probeAgain)
		default:
			return err
		}
	}
	return nil
}

// confirmer is what of the store says that a term is not over.
type confirmer interface {
	ConfirmTerm(ctx context.Context) error
}

// confirmLead says until when the leader of a term may answer for a virtual address. The time counts from before the
// question: that a majority was in this term when it was asked says nothing about later.
func confirmLead(ctx context.Context, store confirmer, term uint64) (vip.Moment, error) {
	asked := vip.Now()
	if err := store.ConfirmTerm(raftstore.WithTerm(ctx, term)); err != nil {
		return 0, err
	}
	return asked.After(leaderLease), nil
}

// noteConflict notes another machine that uses an address.
func (h *holder) noteConflict(a netip.Addr, other net.HardwareAddr) {
	h.log.Warn("another machine uses a virtual address of the cluster; clients may reach it instead", "address", a, "other", other)
	h.mu.Lock()
	h.conflict[a] = otherUse{other, time.Now()}
	h.mu.Unlock()
	h.v.changed.Send()
}

// show says in the status who answers.
func (h *holder) show() {
	board := h.v.o.Board
	if board == nil {
		return
	}
	h.v.mu.Lock()
	kept, trouble := h.v.known && len(h.v.addresses) > 0, h.v.trouble
	h.v.mu.Unlock()
	problems := slices.Clone(h.trouble)
	if trouble != "" {
		problems = append([]string{trouble}, problems...)
	}
	h.mu.Lock()
	for _, a := range h.v.Kept() {
		if c, ok := h.conflict[a]; ok && time.Since(c.at) < conflictShown {
			problems = append(problems, fmt.Sprintf("%s is used by another machine too, with the Ethernet address %s: take it off that "+
				"one, or choose another address with coracle vip set", a, c.by))
		}
	}
	h.mu.Unlock()
	if !kept && len(problems) == 0 && len(h.v.Current()) == 0 && !h.reported {
		return // most clusters have none, and need not read that
	}
	h.reported = true
	line := board.Part("virtual address")
	text := Format(h.v.Kept())
	switch {
	case len(problems) > 0:
		line.Set(status.Degraded, strings.Join(problems, "; "))
	case !kept && len(h.v.Current()) > 0:
		line.Set(status.Starting, Format(h.v.Current())+": not agreed on yet")
	case !kept:
		line.Set(status.Disabled, "the cluster has none")
	case h.lead.Leader:
		line.Set(status.Running, text+": this server answers for it")
	default:
		line.Set(status.Waiting, text+": "+h.leaderName()+" answers for it")
	}
}

// leaderName is what people call the server that leads.
func (h *holder) leaderName() string {
	for _, m := range h.store.Members() {
		if !m.Leader {
			continue
		}
		if name := h.v.o.MachineAt(m.Address); name != "" {
			return name
		}
		return "the server at " + m.Address
	}
	return "the server that leads"
}
