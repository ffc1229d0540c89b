// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/disk"
)

// ErrShare is wrapped by an error of Options.Admit that refuses a server for what it shares (Options.Share). The server
// may fetch that again (Options.Renew) and repeat its request.
var ErrShare = errors.New("raftstore: the joining server's keys are not those of the cluster")

// renewEvery is the least time between two calls of Options.Renew.
const renewEvery = 5 * time.Second

type joinCall struct {
	ID, Address string
	// Share is the result of Options.Share.
	Share string `json:",omitempty"`
	Quota int64  `json:",omitempty"` // Options.QuotaBytes; 0 from older servers
}

// membership makes this server a member, keeps its address up to date, and finds out when it was removed. While this
// server leads, it admits others.
type membership struct {
	*peers
	leadership    *leadership
	leader        *leaderBoard
	quota         *quota
	formerMembers []disk.Peer // other members, as noted before this start
	asking        sync.Mutex  // held while a goroutine asks whether this server was removed
	mustJoin      bool        // this server's directory was never part of a cluster, and may not begin one
	hasJoined     atomic.Bool // this server became a member since this start
}

// unjoined says whether this server has yet to become a member for the first time.
func (ms *membership) unjoined() bool { return ms.mustJoin && !ms.hasJoined.Load() }

// hadPeers says whether there were other servers at an earlier start.
func (ms *membership) hadPeers() bool { return len(ms.formerMembers) > 0 }

// sameServer says whether a member is the server that has this id and is at this address. The member's address may
// differ if it does not answer there, and was met at the other one.
func (ms *membership) sameServer(m raft.Server, id raft.ServerID, address raft.ServerAddress) bool {
	if m.ID != id {
		return false
	}
	at := dialAddress(address)
	return dialAddress(m.Address) == at || ms.Transport != nil && dialAddress(ms.Where(id, m.Address)) == at
}

// serveJoin adds a server as a non-voter, or notes its new address.
func (ms *membership) serveJoin(ctx context.Context, r joinCall) (emptyReply, error) {
	if lead, _ := ms.leadership.get(); !lead.Leader {
		return emptyReply{}, errNotLeader
	}
	if r.ID == "" || r.Address == "" {
		return emptyReply{}, status.Error(codes.InvalidArgument, "raftstore: a member needs an id and an address")
	}
	id, address := raft.ServerID(r.ID), raft.ServerAddress(r.Address)
	add := ms.raft.AddNonvoter
	members, at := ms.dir.Log.Members()
	for _, server := range members.Servers {
		// Two servers with one name, or with copies of one directory, would replace each other again and again.
		if disk.NodeOf(string(server.ID)) == disk.NodeOf(r.ID) && !ms.sameServer(server, id, address) &&
			(server.ID == ms.id && id != ms.id || ms.responsive(server.ID, 3*ms.opts.ElectionTimeout)) {
			return emptyReply{}, status.Errorf(codes.FailedPrecondition,
				"raftstore: the cluster already has a server %q, at %s, and it answers", disk.NodeOf(r.ID), dialAddress(server.Address))
		}
		if server.ID != id {
			continue
		}
		if server.Address == address {
			if err := ms.await(ms.raft.Barrier(0)); err != nil { // returns when the member's entry is committed
				return emptyReply{}, callError(err)
			}
			return emptyReply{}, nil
		}
		if server.Suffrage == raft.Voter {
			add = ms.raft.AddVoter
		}
	}
	if err := ms.checkLimit(members.Servers, id); err != nil {
		return emptyReply{}, err
	}
	joins := id != ms.id && !hasMember(members.Servers, id)
	if live := ms.fsm.view().Stats().LiveBytes; joins && r.Quota > 0 && !enoughFor(r.Quota, live) {
		return emptyReply{}, status.Errorf(codes.FailedPrecondition, "raftstore: the cluster's store has %d bytes of keys, and this server's "+
			"memory is enough for %d with history. Give its machine or control group more memory, so that there is a quarter "+
			"more than the keys take, or delete what is not needed", live, r.Quota)
	}
	if admit := ms.opts.Admit; admit != nil && joins {
		release, err := admit(r.Share)
		if errors.Is(err, ErrShare) {
			return emptyReply{}, status.Error(codes.Unauthenticated, err.Error()) // a call to join has this code for no other reason
		}
		if err != nil {
			return emptyReply{}, status.Error(codes.FailedPrecondition, err.Error())
		}
		defer release()
	}
	unlock, err := ms.lockLevel(ctx)
	if err != nil {
		return emptyReply{}, callError(err)
	}
	defer unlock()
	if err := ms.checkReadable(address); err != nil {
		return emptyReply{}, err
	}
	// Another server may have led since, and raised the level. The level was read before the term (committedIndex).
	if lead, _ := ms.leadership.get(); !lead.Leader || lead.Term != ms.raft.CurrentTerm() {
		return emptyReply{}, errNotLeader
	}
	if err := ms.await(add(id, address, at, 0)); err != nil {
		return emptyReply{}, callError(err)
	}
	ms.log.Info("a server was added to the store's cluster, or has a new address", "member", id, "address", address)
	return emptyReply{}, nil
}

// checkLimit refuses a server that would exceed Options.MaxMembers. A server whose directory was replaced does not
// count as one more: its former member is removed.
func (ms *membership) checkLimit(members []raft.Server, id raft.ServerID) error {
	if most := ms.opts.MaxMembers; most == 0 || len(members) < most {
		return nil
	}
	if slices.ContainsFunc(members, func(m raft.Server) bool { return disk.NodeOf(string(m.ID)) == disk.NodeOf(string(id)) }) {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition,
		"raftstore: the cluster already has the maximum of %d servers. This server is admitted once one of them is removed",
		len(members))
}

// keepAnnounced announces this server at the start. It does so again when the members have another address for it: at
// the start, this server may not have had the entry of its last announcement yet.
func (ms *membership) keepAnnounced(ctx context.Context) {
	ms.announce(ctx)
	for timers.Sleep(ctx, peersTick) { // also after an announcement: its entry has to arrive here
		if slices.ContainsFunc(ms.raft.GetConfiguration().Configuration().Servers, func(m raft.Server) bool {
			return m.ID == ms.id && m.Address != ms.address
		}) {
			ms.announce(ctx)
		}
	}
}

// announce makes sure that the cluster has this server as a member, under its present address. It repeats that until it
// succeeds or ctx is done.
func (ms *membership) announce(ctx context.Context) {
	const pause = 100 * time.Millisecond
	var renewed time.Time
	for failures := 0; ; failures++ {
		err := ms.announceOnce(ctx, failures)
		ms.leader.joinRefused.Store(refusalOf(err))
		if err == nil && ms.unjoined() {
			ms.hasJoined.Store(true)
			if err := ms.dir.Joined(); err != nil { // if this fails, the next start asks again
				ms.log.Warn("this server has joined the store's cluster, but could not record that", "err", err)
			}
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		if status.Code(err) == codes.Unauthenticated && ms.opts.Renew != nil && time.Since(renewed) >= renewEvery {
			ms.log.Warn("the cluster's keys have changed since this server asked to join; fetching them again",
				"reason", err)
			if err := ms.opts.Renew(ctx); err != nil && ctx.Err() == nil {
				ms.log.Warn("the cluster's keys could not be fetched again; retrying", "err", err)
			}
			renewed = time.Now()
			continue
		}
		if failures == 50 || failures%600 == 599 {
			ms.log.Warn("this server could not yet register with the store's cluster; retrying", "err", err)
		}
		if !timers.Sleep(ctx, pause) {
			return
		}
	}
}

// refusalOf returns the message of an error by which a leader does not admit a server, nil for other errors.
func refusalOf(err error) *string {
	if status.Code(err) != codes.FailedPrecondition {
		return nil
	}
	return new(status.Convert(err).Message())
}

var errNoReply = errors.New("raftstore: no server of the cluster answers")

func (ms *membership) announceOnce(ctx context.Context, round int) error {
	for _, server := range ms.raft.GetConfiguration().Configuration().Servers {
		// A new server's membership may not be committed, and the next leader may undo it. Then no server would speak
		// to it any more.
		if server.ID == ms.id && server.Address == ms.address && !ms.unjoined() {
			return nil
		}
	}
	me := joinCall{ID: string(ms.id), Address: string(ms.address), Quota: ms.opts.QuotaBytes}
	if ms.opts.Share != nil {
		me.Share = ms.opts.Share()
	}
	lead, _ := ms.leader.get()
	if lead.Self {
		_, err := ms.serveJoin(ctx, me)
		return err
	}
	if isOnlyVoter(ms.raft.GetConfiguration().Configuration().Servers, ms.id) {
		return errNotLeader // for now; a leader of other servers leads another cluster
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	leader := string(lead.Address)
	if leader == "" {
		addresses := ms.knownAddresses()
		if len(addresses) == 0 {
			return errNoReply
		}
		var err error
		if leader, err = ms.findLeader(ctx, addresses, round); err != nil {
			return err
		}
	}
	if !ms.unjoined() {
		info, err := callAt[infoReply](ctx, ms.Call, leader, callInfo, emptyReply{})
		if err != nil {
			return err
		}
		if info.Leader != leader {
			return errNotLeader
		}
		if !slices.ContainsFunc(info.Members, func(m raft.Server) bool { return m.ID == ms.id }) {
			return nil // it was removed, and must not join again by itself
		}
	}
	_, err := callAt[emptyReply](ctx, ms.Call, leader, callJoin, me)
	return err
}

// askAtOnce is how many servers are asked for the leader at the same time.
const askAtOnce = 8

// findLeader asks the servers at some addresses for the leader, and returns the leader's address. It asks askAtOnce of
// them at once, others in each round. A server that answers has then been met at its address: that is how servers whose
// addresses have all changed come to elect a leader.
func (ms *membership) findLeader(ctx context.Context, addresses []string, round int) (string, error) {
	n := min(len(addresses), askAtOnce)
	asked := make([]string, n)
	for i := range asked {
		asked[i] = addresses[(round*n+i)%len(addresses)]
	}
	var failed atomic.Pointer[error]
	found := askMembers(ctx, asked, func(ctx context.Context, address string) (string, bool) {
		info, err := callAt[infoReply](ctx, ms.Call, address, callInfo, emptyReply{})
		if err != nil {
			failed.CompareAndSwap(nil, &err)
		}
		return info.Leader, err == nil && info.Leader != ""
	}, func([]string) bool { return true })
	switch err := failed.Load(); {
	case len(found) > 0:
		return found[0], nil
	case err != nil:
		return "", *err
	}
	return "", errNotLeader
}

// knownAddresses lists the addresses at which other servers may be.
func (ms *membership) knownAddresses() []string {
	var out []string
	add := func(address string) {
		address = dialAddress(raft.ServerAddress(address))
		if address != "" && address != ms.opts.Network.Address && !slices.Contains(out, address) {
			out = append(out, address)
		}
	}
	if ms.opts.Others != nil {
		for _, a := range ms.opts.Others() {
			add(a)
		}
	}
	for _, a := range ms.opts.Join {
		add(a)
	}
	for _, former := range ms.formerMembers {
		add(former.Address)
	}
	for _, server := range ms.raft.GetConfiguration().Configuration().Servers {
		add(string(server.Address))
	}
	return out
}

// peersTick is how often a server checks whether its note of the other members is still right.
const peersTick = 5 * time.Second

// savePeersOnChange keeps the note of the other members' addresses up to date until ctx is done. Every server has that
// note, whichever server leads: any directory may turn out to be damaged.
func (ms *membership) savePeersOnChange(ctx context.Context) {
	for timers.Sleep(ctx, peersTick) {
		ms.savePeers()
	}
}

// savePeers notes the other members' addresses, for a start at which this directory turns out to be damaged.
func (ms *membership) savePeers() {
	servers := ms.raft.GetConfiguration().Configuration().Servers
	if len(servers) == 0 {
		return // no members are known yet: without the present note it could not find the others
	}
	var peers []disk.Peer
	var ids []raft.ServerID
	for _, server := range servers {
		if server.ID != ms.id {
			peers = append(peers, disk.Peer{ID: string(server.ID), Address: dialAddress(server.Address)})
			ids = append(ids, server.ID)
		}
	}
	ms.Retain(ids)
	ms.leader.retainUnanswered(servers)
	if err := ms.dir.SavePeers(peers); err != nil {
		ms.log.Debug("could not note the other servers' addresses", "err", err)
	}
}

// reportRemoval notes and logs it if the others have a leader and do not count this server as a member. This server
// learns of it in no other way: no server speaks to a removed one.
func (ms *membership) reportRemoval(ctx context.Context) {
	if ms.unjoined() || isOnlyVoter(ms.raft.GetConfiguration().Configuration().Servers, ms.id) {
		return // it was never a member, or no other server can remove it
	}
	if !ms.asking.TryLock() {
		return
	}
	defer ms.asking.Unlock()
	own, since := ms.dir.Log.Members()
	best, ok := ms.bestInformed(ms.fetchInfo(ctx, ms.knownAddresses()))
	switch before := ms.leader.reportedLeader.Load(); {
	case ms.leader.hasLeader():
		return
	case !ok && before != nil && !before.removed:
		ms.leader.reportedLeader.Store(nil)
		return
	case !ok:
		return
	case hasMember(best.Members, ms.id):
		ms.leader.membershipConfirmed.Store(true)
		ms.checkCutOff(ctx, best)
		return
	case len(own.Servers) == 0:
		return // its log is empty: the answer may be from before this server was added
	case best.Applied < since && slices.ContainsFunc(own.Servers,
		func(m raft.Server) bool { return m.ID != ms.id && hasMember(best.Members, m.ID) }):
		return // the answer is from before this server was added: the other server's disk is stalled
	}
	ms.leader.membershipConfirmed.Store(false)
	before := ms.leader.reportedLeader.Swap(&reportedLeader{address: dialAddress(raft.ServerAddress(best.Leader)), removed: true})
	if ms.leader.hasLeader() { // a leader has been heard in the meantime
		ms.leader.reportedLeader.Store(nil)
		ms.leader.membershipConfirmed.Store(true)
		return
	}
	if before == nil || !before.removed {
		ms.log.Error("this server was removed from the store's cluster. Its data are kept, but it does not count for a majority. "+
			"To let it join again, stop it, move the store's directory away, and start it with the address of another server",
			"directory", ms.opts.Dir, "asked", best.ID)
	}
}

func hasMember(members []raft.Server, id raft.ServerID) bool {
	return slices.ContainsFunc(members, func(m raft.Server) bool { return m.ID == id })
}

// fetchInfo asks the servers at some addresses concurrently, and returns the answers.
func (ms *membership) fetchInfo(ctx context.Context, addresses []string) []infoReply {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return askMembers(ctx, addresses, func(ctx context.Context, address string) (infoReply, bool) {
		info, err := callAt[infoReply](ctx, ms.Call, address, callInfo, emptyReply{})
		return info, err == nil
	}, nil)
}

// bestInformed returns the answer with the highest applied index, among the servers that know of another leader than
// this server. A server that is behind, by a stalled disk or otherwise, also knows of a leader, but has an old list of
// members. A server that has just joined hears the leader before it has read the list of members. Its own id is not in
// its list, and its answer is ignored.
func (ms *membership) bestInformed(answers []infoReply) (best infoReply, ok bool) {
	for _, a := range answers {
		if a.Leader != "" && a.Leader != string(ms.address) && hasMember(a.Members, raft.ServerID(a.ID)) &&
			(!ok || a.Applied > best.Applied) {
			best, ok = a, true
		}
	}
	return best, ok
}
