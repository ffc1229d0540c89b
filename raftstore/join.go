// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/disk"
)

// ErrShare is wrapped by an error of Options.Admit that refuses a server for what it shares: it may get that anew, and
// ask again.
var ErrShare = errors.New("raftstore: it shares something else than the cluster has")

// renewEvery is the least time between two calls of Options.Renew.
const renewEvery = 5 * time.Second

type joinCall struct {
	ID, Address string
	// Share is what Options.Share says; a server of an earlier version sends none.
	Share string `json:",omitempty"`
}

// sameServer says that a member is the server that says that it is: at the same
// address, or at one where it is met now that the other one does not answer.
func (p *clustered) sameServer(m raft.Server, id raft.ServerID, address raft.ServerAddress) bool {
	if m.ID != id {
		return false
	}
	at := dialAddress(address)
	return dialAddress(m.Address) == at || p.Transport != nil && dialAddress(p.Where(id, m.Address)) == at
}

// serveJoin takes a server in, or notes its new address.
func (p *clustered) serveJoin(_ context.Context, r joinCall) (nothing, error) {
	if lead, _ := p.leadership.get(); !lead.Leader {
		return nothing{}, errNotLeader
	}
	if r.ID == "" || r.Address == "" {
		return nothing{}, status.Error(codes.InvalidArgument, "raftstore: a member needs an id and an address")
	}
	id, address := raft.ServerID(r.ID), raft.ServerAddress(r.Address)
	add := p.raft.AddNonvoter
	members, at := p.dir.Log.Members()
	if err := readable(members.Servers, address); err != nil {
		return nothing{}, err
	}
	for _, server := range members.Servers {
		// Two servers of one name, or with copies of one directory, would take
		// each other's place again and again.
		if disk.NodeOf(string(server.ID)) == disk.NodeOf(r.ID) && !p.sameServer(server, id, address) &&
			(server.ID == p.id && id != p.id || p.answers(server.ID, 3*p.opts.ElectionTimeout)) {
			return nothing{}, status.Errorf(codes.FailedPrecondition,
				"raftstore: there is a server %q at %s already, and it answers", disk.NodeOf(r.ID), dialAddress(server.Address))
		}
		if server.ID != id {
			continue
		}
		if server.Address == address {
			if err := p.await(p.raft.Barrier(0)); err != nil { // until that is committed
				return nothing{}, callError(err)
			}
			return nothing{}, nil
		}
		if server.Suffrage == raft.Voter {
			add = p.raft.AddVoter
		}
	}
	if err := p.full(members.Servers, id); err != nil {
		return nothing{}, err
	}
	if admit := p.opts.Admit; admit != nil && id != p.id && !slices.ContainsFunc(members.Servers, func(m raft.Server) bool { return m.ID == id }) {
		release, err := admit(r.Share)
		if errors.Is(err, ErrShare) {
			return nothing{}, status.Error(codes.Unauthenticated, err.Error()) // nothing else here answers that
		}
		if err != nil {
			return nothing{}, status.Error(codes.FailedPrecondition, err.Error())
		}
		defer release()
	}
	if err := p.await(add(id, address, at, 0)); err != nil {
		return nothing{}, callError(err)
	}
	p.log.Info("a server is in the store's cluster", "member", id, "address", address)
	return nothing{}, nil
}

// full refuses a server that would be one more than there may be. One whose directory was replaced is none more: the
// one that it was goes.
func (p *clustered) full(members []raft.Server, id raft.ServerID) error {
	if most := p.opts.MaxMembers; most == 0 || len(members) < most {
		return nil
	}
	if slices.ContainsFunc(members, func(m raft.Server) bool { return disk.NodeOf(string(m.ID)) == disk.NodeOf(string(id)) }) {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition, "raftstore: there are %d servers, and there may not be more. This one is taken in when one of them was removed", len(members))
}

// announce makes sure that the cluster has this server, under its present
// address. It tries until it succeeds or ctx is done.
func (p *clustered) announce(ctx context.Context) {
	const pause = 100 * time.Millisecond
	var renewed time.Time
	for failures := 0; ; failures++ {
		err := p.announceOnce(ctx, failures)
		if err == nil && p.joins {
			p.joined.Store(true)
			if err := p.dir.Joined(); err != nil { // the next start asks again
				p.log.Warn("this server has joined the store's cluster", "err", err)
			}
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		if status.Code(err) == codes.Unauthenticated && p.opts.Renew != nil && time.Since(renewed) >= renewEvery {
			p.log.Warn("the store's cluster has other keys than this server got when it asked to join; they are fetched again", "reason", err)
			if err := p.opts.Renew(ctx); err != nil && ctx.Err() == nil {
				p.log.Warn("the cluster's keys could not be fetched again; the next try follows", "err", err)
			}
			renewed = time.Now()
			continue
		}
		if failures == 50 || failures%600 == 599 {
			p.log.Warn("still not in the store's cluster; trying on", "err", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

var errNoAnswer = errors.New("raftstore: no server of the cluster answers")

func (p *clustered) announceOnce(ctx context.Context, round int) error {
	for _, server := range p.raft.GetConfiguration().Configuration().Servers {
		// A new one's being there may not be committed, and be undone by the
		// next leader: then nobody would speak to it any more.
		if server.ID == p.id && server.Address == p.address && !p.joins {
			return nil
		}
	}
	me := joinCall{ID: string(p.id), Address: string(p.address)}
	if p.opts.Share != nil {
		me.Share = p.opts.Share()
	}
	lead, _ := p.leader.get()
	if lead.Self {
		_, err := p.serveJoin(ctx, me)
		return err
	}
	if isOnlyVoter(p.raft.GetConfiguration().Configuration().Servers, p.id) {
		return errNotLeader // yet: who leads others leads another cluster
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	leader := string(lead.Address)
	if leader == "" {
		addresses := p.known()
		if len(addresses) == 0 {
			return errNoAnswer
		}
		var err error
		if leader, err = p.askLeader(ctx, addresses, round); err != nil {
			return err
		}
	}
	if !p.joins {
		info, err := callAt[infoAnswer](ctx, p.Call, leader, callInfo, nothing{})
		if err != nil {
			return err
		}
		if info.Leader != leader {
			return errNotLeader
		}
		if !slices.ContainsFunc(info.Members, func(m raft.Server) bool { return m.ID == p.id }) {
			return nil // it was taken out: it must not come back by itself
		}
	}
	_, err := callAt[nothing](ctx, p.Call, leader, callJoin, me)
	return err
}

// askAtOnce is how many servers are asked for the leader at the same time.
const askAtOnce = 8

// askLeader asks servers at some addresses who leads, in turn from round to round
// if there are many. Whoever answers has been met then: without a leader that is
// how servers whose addresses have all changed come to elect one.
func (p *clustered) askLeader(ctx context.Context, addresses []string, round int) (string, error) {
	n := min(len(addresses), askAtOnce)
	type answer struct {
		leader string
		err    error
	}
	answers := make(chan answer, n) // each is sent, whether or not somebody waits
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i := range n {
		address := addresses[(round*n+i)%len(addresses)]
		asking.Go(func() {
			info, err := callAt[infoAnswer](ctx, p.Call, address, callInfo, nothing{})
			answers <- answer{info.Leader, err}
		})
	}
	err := errNotLeader
	for range n {
		switch a := <-answers; {
		case a.err == nil && a.leader != "":
			return a.leader, nil
		case a.err != nil && errors.Is(err, errNotLeader):
			err = a.err
		}
	}
	return "", err
}

// known lists where other servers may be.
func (p *clustered) known() []string {
	var out []string
	add := func(address string) {
		address = dialAddress(raft.ServerAddress(address))
		if address != "" && address != p.opts.Network.Address && !slices.Contains(out, address) {
			out = append(out, address)
		}
	}
	if p.opts.Others != nil {
		for _, a := range p.opts.Others() {
			add(a)
		}
	}
	for _, a := range p.opts.Join {
		add(a)
	}
	for _, p := range p.former {
		add(p.Address)
	}
	for _, server := range p.raft.GetConfiguration().Configuration().Servers {
		add(string(server.Address))
	}
	return out
}

// peersTick is how often a server looks whether the others are still those that it noted.
const peersTick = 5 * time.Second

// notePeers keeps the note of the other members' addresses until ctx is done.
// Every server has one, whoever leads: any directory may turn out to be damaged.
func (p *clustered) notePeers(ctx context.Context) {
	ticker := time.NewTicker(peersTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			p.savePeers()
		}
	}
}

// savePeers notes the other members' addresses, should this directory turn out
// to be damaged at some start.
func (p *clustered) savePeers() {
	servers := p.raft.GetConfiguration().Configuration().Servers
	if len(servers) == 0 {
		return // not yet: what it knows is all that leads it to the others
	}
	var peers []disk.Peer
	var ids []raft.ServerID
	for _, server := range servers {
		if server.ID != p.id {
			peers = append(peers, disk.Peer{ID: string(server.ID), Address: dialAddress(server.Address)})
			ids = append(ids, server.ID)
		}
	}
	p.Retain(ids)
	if err := p.dir.SavePeers(peers); err != nil {
		p.log.Debug("could not note the other servers' addresses", "err", err)
	}
}

// reportRemoval notes, and tells the operator, if the others have a leader and do not
// count this server among them. Nothing else would: nobody speaks to it any more.
func (p *clustered) reportRemoval(ctx context.Context) {
	if p.joins && !p.joined.Load() || isOnlyVoter(p.raft.GetConfiguration().Configuration().Servers, p.id) {
		return // it was never in, or nobody else can remove it
	}
	if !p.asking.TryLock() {
		return
	}
	defer p.asking.Unlock()
	own, since := p.dir.Log.Members()
	best, ok := p.bestInformed(p.askInfo(ctx, p.known()))
	switch before := p.leader.without.Load(); {
	case p.leader.hasLeader():
		return
	case !ok && before != nil && !before.removed:
		p.leader.without.Store(nil)
		return
	case !ok:
		return
	case hasMember(best.Members, p.id):
		p.leader.counted.Store(true)
		p.noteCutOff(ctx, best)
		return
	case len(own.Servers) == 0:
		return // its log is empty: nothing tells whether the answer is of the time before this server was taken in
	case best.Applied < since && slices.ContainsFunc(own.Servers, func(m raft.Server) bool { return m.ID != p.id && hasMember(best.Members, m.ID) }):
		return // it is of the time before this server was taken in: its disk hangs
	}
	p.leader.counted.Store(false)
	before := p.leader.without.Swap(&leaderElsewhere{address: dialAddress(raft.ServerAddress(best.Leader)), removed: true})
	if p.leader.hasLeader() { // since just now
		p.leader.without.Store(nil)
		p.leader.counted.Store(true)
		return
	}
	if before == nil || !before.removed {
		p.log.Error("this server was taken out of the store's cluster. What it holds is kept, but it does not count for a majority. "+
			"To let it join again, stop it, move the store's directory away, and start it with the address of another server",
			"directory", p.opts.Dir, "asked", best.ID)
	}
}

func hasMember(members []raft.Server, id raft.ServerID) bool {
	return slices.ContainsFunc(members, func(m raft.Server) bool { return m.ID == id })
}

// askInfo asks servers at some addresses side by side, and returns the answers.
func (p *clustered) askInfo(ctx context.Context, addresses []string) []infoAnswer {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var mu sync.Mutex
	var asking sync.WaitGroup
	var answers []infoAnswer
	for _, address := range addresses {
		asking.Go(func() {
			info, err := callAt[infoAnswer](ctx, p.Call, address, callInfo, nothing{})
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answers = append(answers, info)
		})
	}
	asking.Wait()
	return answers
}

// bestInformed is the answer of the server that knows most, among those that know of another leader than this server.
// One whose disk hangs, or that is behind for another reason, does so too, and counts members who are none any more.
// One that has just joined hears the leader before it has read who the members are: that it does not know of itself
// shows it.
func (p *clustered) bestInformed(answers []infoAnswer) (best infoAnswer, ok bool) {
	for _, a := range answers {
		if a.Leader != "" && a.Leader != string(p.address) && hasMember(a.Members, raft.ServerID(a.ID)) && (!ok || a.Applied > best.Applied) {
			best, ok = a, true
		}
	}
	return best, ok
}
