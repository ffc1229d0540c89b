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
	// leaderLease is for how long a leader announces a virtual address after it began to ask a majority whether it
	// leads.
	leaderLease = 500 * time.Millisecond
	// leaderWait is how long a new leader waits before it announces. Its predecessor may announce for leaderLease after
	// a moment at which a majority had elected no other leader. That moment is before the election of this one. The
	// additional tenth is for clocks of different speed.
	leaderWait = leaderLease + leaderLease/10
	// pollInterval is how often the machine's interfaces and translations are checked: addresses appear and disappear,
	// and other programs flush nftables. They are checked only if the cluster has a virtual address.
	pollInterval = 10 * time.Second
	// probeAgain is the pause before a new address, to which another machine has responded, is probed again.
	probeAgain = 15 * time.Second
	// transferAfter is how long a leader without a link for any virtual address waits before it transfers leadership.
	// transferAgain is how long it keeps the leadership if it gets it back: perhaps no server has a link.
	transferAfter = 10 * time.Second
	transferAgain = 10 * time.Minute
	// transferTimeout limits the request to another server to lead.
	transferTimeout = 2 * time.Second
	// conflictShown is for how long a conflict is shown in the status.
	conflictShown = time.Minute
)

// holder announces the virtual addresses while this server leads. It always keeps the translations: a client that does
// not know yet that the address has moved is served here, too.
type holder struct {
	v     *Addresses
	store Store
	log   *slog.Logger
	// links, probe and announce are vip.Links, vip.Probe and vip.Announce, except in tests.
	links    func() ([]vip.Link, error)
	probe    func(context.Context, vip.Interface, netip.Addr) error
	announce func(context.Context, vip.Announcement) error
	shuffle  func(n int, swap func(i, j int))

	lead              raftstore.Leadership
	leadSince         time.Time // when lead was received
	transferred       time.Time // when leadership was transferred
	interfaces        map[netip.Addr]vip.Interface
	problems          []string // found by the last reconcile
	reported          bool     // the status has a line
	redirects         []vip.Redirect
	stopAnnouncing    func() // ends the announcements, and waits for it
	announced         map[netip.Addr]vip.Interface
	announcementEnded chan error // capacity 1: for the first announcement that ended by itself, others may be dropped

	mu       sync.Mutex
	conflict map[netip.Addr]otherUse
}

// otherUse is the use of an address by another machine.
type otherUse struct {
	mac    net.HardwareAddr
	seenAt time.Time
}

// Store is the part of the store that shows and changes the leader.
type Store interface {
	confirmer
	Members() []raftstore.Member
	MoveLeader(ctx context.Context, id uint64) error
}

func newHolder(v *Addresses, store Store) *holder {
	return &holder{v: v, store: store, log: v.o.Logger, links: vip.Links, probe: vip.Probe, announce: vip.Announce, shuffle: rand.Shuffle,
		stopAnnouncing: func() {}, conflict: map[netip.Addr]otherUse{}}
}

// run returns when ctx is done. Then nothing is announced any more, and no translation is left.
func (h *holder) run(ctx context.Context, leadership <-chan raftstore.Leadership) {
	defer func() {
		h.release()
		_ = h.redirect(nil) // a failure has been logged
	}()
	_ = h.redirect(nil) // removes the translations of a killed process; a failure has been logged
	for {
		h.reconcile(ctx)
		var again <-chan time.Time
		if len(h.v.ClusterAddresses()) > 0 {
			again = time.After(pollInterval)
		}
		select {
		case <-ctx.Done():
			return
		case lead, open := <-leadership:
			if !open {
				leadership = nil
			}
			h.lead, h.leadSince = lead, time.Now()
			h.release()
		case <-h.v.changed:
		case err := <-h.announcementEnded:
			h.log.Warn("a virtual address is no longer announced; retrying", "error", err)
			h.release()
			timers.Sleep(ctx, time.Second) // the cause may persist
		case <-again:
		}
	}
}

// reconcile updates translations, announcements and status.
func (h *holder) reconcile(ctx context.Context) {
	h.interfaces, h.problems = h.findInterfaces(h.v.ClusterAddresses())
	redirects, err := h.v.redirects(h.interfaces)
	if err == nil && h.v.o.Redirect != nil && slices.Equal(redirects, h.redirects) && len(redirects) > 0 {
		if there, readErr := vip.RedirectsThere(redirects); readErr == nil && !there {
			h.redirects = nil
		}
	}
	if err == nil && !slices.Equal(redirects, h.redirects) {
		err = h.redirect(redirects)
	}
	if err != nil {
		h.problems = append(h.problems, err.Error())
	}
	switch {
	case !h.lead.Leader:
		h.release()
	case len(h.interfaces) == 0:
		h.release()
		h.transfer(ctx)
	case !maps.Equal(h.interfaces, h.announced):
		h.release()
		h.stopAnnouncing, h.announced = h.announceAll(ctx), h.interfaces
	}
	h.showStatus()
}

// transfer makes another server lead when this one has led for a while and has no link for any of the addresses. It is
// not known which server has one. A new leader without a link transfers leadership in its turn.
func (h *holder) transfer(ctx context.Context) {
	again := !h.transferred.IsZero() && time.Since(h.transferred) < transferAgain
	if len(h.v.ClusterAddresses()) == 0 || time.Since(h.leadSince) < transferAfter || again {
		return
	}
	others := slices.DeleteFunc(h.store.Members(), func(m raftstore.Member) bool { return m.Self || !m.Voter })
	h.shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	for _, m := range others {
		within, cancel := context.WithTimeout(ctx, transferTimeout)
		err := h.store.MoveLeader(within, m.ID)
		cancel()
		if err == nil {
			h.transferred = time.Now()
			h.log.Info("this server has no interface for the cluster's virtual address; transferred the leadership to another server", "other", m.Address)
			return
		}
		h.log.Debug("could not transfer the leadership from this server, which has no interface for the cluster's virtual address", "other", m.Address,
			"error", err)
	}
}

// release ends the announcements. Nothing is sent any more when it returns.
func (h *holder) release() {
	h.stopAnnouncing()
	h.stopAnnouncing, h.announced = func() {}, nil
}

func (h *holder) redirect(redirects []vip.Redirect) error {
	if h.v.o.Redirect == nil {
		return nil
	}
	err := h.v.o.Redirect(redirects)
	if err != nil {
		h.log.Warn("the nftables translations for virtual addresses could not be set", "error", err)
		return err
	}
	h.redirects = redirects
	return nil
}

func (h *holder) findInterfaces(addresses []netip.Addr) (map[netip.Addr]vip.Interface, []string) {
	if len(addresses) == 0 {
		return nil, nil
	}
	links, err := h.links()
	if err != nil {
		return nil, []string{err.Error()}
	}
	interfaces, problems := map[netip.Addr]vip.Interface{}, []string(nil)
	for _, a := range addresses {
		p, err := vip.Find(links, a, h.v.o.Interface)
		if err != nil {
			problems = append(problems, err.Error()+". This server cannot announce it, even when it leads")
			continue
		}
		interfaces[a] = p
	}
	return interfaces, problems
}

// announceAll announces the addresses for this term, after the wait of a new leader, until stop is called.
func (h *holder) announceAll(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	h.announcementEnded = ended
	var announcing sync.WaitGroup
	term, wait := h.lead.Term, time.Until(h.leadSince.Add(leaderWait))
	for a, p := range h.interfaces {
		announcing.Go(func() {
			if !timers.Sleep(ctx, wait) {
				return
			}
			err := h.probeUntilFree(ctx, a, p)
			if err == nil {
				h.log.Info("this server announces a virtual address", "address", a, "interface", p.Name, "term", term)
				err = h.announce(ctx, vip.Announcement{
					Address: a, Interface: p, Logger: h.log,
					Confirm:  func(ctx context.Context) (vip.Moment, error) { return confirmLead(ctx, h.store, term) },
					Conflict: func(other net.HardwareAddr) { h.noteConflict(a, other) },
				})
			}
			if err != nil {
				select {
				case ended <- err:
				default:
				}
			}
		})
	}
	return func() {
		cancel()
		announcing.Wait()
	}
}

// probeUntilFree returns nil when no other machine has an address that is new to the cluster, or ctx is done. It is
// called after the wait of a new leader: no other server announces the address then.
func (h *holder) probeUntilFree(ctx context.Context, a netip.Addr, p vip.Interface) error {
	for h.v.needsProbe(a) && ctx.Err() == nil {
		err := h.probe(ctx, p, a)
		var used *vip.InUseError
		switch {
		case err == nil:
			h.v.setProbed(a)
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

// confirmer is the part of the store that confirms that a term is not over.
type confirmer interface {
	ConfirmTerm(ctx context.Context) error
}

// confirmLead returns until when the leader of a term may announce a virtual address. The lease counts from before the
// request: that a majority was in this term when it was asked says nothing about later.
func confirmLead(ctx context.Context, store confirmer, term uint64) (vip.Moment, error) {
	asked := vip.Now()
	if err := store.ConfirmTerm(raftstore.WithTerm(ctx, term)); err != nil {
		return 0, err
	}
	return asked.After(leaderLease), nil
}

// noteConflict records that another machine uses an address.
func (h *holder) noteConflict(a netip.Addr, other net.HardwareAddr) {
	h.log.Warn("another machine uses a virtual address of the cluster; clients may reach it instead", "address", a, "other", other)
	h.mu.Lock()
	h.conflict[a] = otherUse{other, time.Now()}
	h.mu.Unlock()
	h.v.changed.Send()
}

// showStatus writes to the status which server announces the addresses.
func (h *holder) showStatus() {
	board := h.v.o.Board
	if board == nil {
		return
	}
	h.v.mu.Lock()
	kept, problem := h.v.fromCluster && len(h.v.addresses) > 0, h.v.problem
	h.v.mu.Unlock()
	problems := slices.Clone(h.problems)
	if problem != "" {
		problems = append([]string{problem}, problems...)
	}
	h.mu.Lock()
	for _, a := range h.v.ClusterAddresses() {
		if c, ok := h.conflict[a]; ok && time.Since(c.seenAt) < conflictShown {
			problems = append(problems, fmt.Sprintf("%s is used by another machine too, with the Ethernet address %s: remove it from that "+
				"machine, or choose another address with coracle vip set", a, c.mac))
		}
	}
	h.mu.Unlock()
	if !kept && len(problems) == 0 && len(h.v.Current()) == 0 && !h.reported {
		return // most clusters have no virtual address, and get no line
	}
	h.reported = true
	line := board.Part("virtual address")
	text := Format(h.v.ClusterAddresses())
	switch {
	case len(problems) > 0:
		line.Set(status.Degraded, strings.Join(problems, "; "))
	case !kept && len(h.v.Current()) > 0:
		line.Set(status.Starting, Format(h.v.Current())+": not confirmed by the cluster yet")
	case !kept:
		line.Set(status.Disabled, "the cluster has none")
	case h.lead.Leader:
		line.Set(status.Running, text+": announced by this server")
	default:
		line.Set(status.Waiting, text+": "+h.leaderName()+" answers for it")
	}
}

func (h *holder) leaderName() string {
	for _, m := range h.store.Members() {
		if !m.Leader {
			continue
		}
		for _, machine := range h.v.o.Machines() {
			if machine.Address.String() == m.Address {
				return machine.Name
			}
		}
		return "the server at " + m.Address
	}
	return "the server that leads"
}
