// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// transferTimeout bounds the leadership transfer of a server that stops.
const transferTimeout = time.Second

// TransferBeforeStop transfers the leadership to another voter, so that an orderly stop leaves no time without a
// leader. It says whether it did.
func (c *Cluster) TransferBeforeStop() bool {
	if lead, _ := c.leadership.get(); !lead.Leader || !c.othersVote() {
		return false
	}
	ctx, cancel := context.WithTimeout(c.ctx, transferTimeout)
	defer cancel()
	if err := c.TransferLeadership(ctx); err != nil {
		c.log.Warn("could not transfer the store's leadership before stopping", "err", err)
		return false
	}
	return true
}

// MoveLeader makes the voter with this member id the leader. As with etcd, only the leader serves it.
func (c *Cluster) MoveLeader(ctx context.Context, id uint64) error {
	if lead, _ := c.leadership.get(); !lead.Leader {
		return rpctypes.ErrGRPCNotLeader
	}
	if id == c.memberID {
		return nil
	}
	err := transferTo(ctx, c.replica, c.replication, id)
	if status.Code(err) == codes.NotFound {
		return rpctypes.ErrGRPCBadLeaderTransferee
	}
	return proposeErrorOrNil(ctx, err)
}

// TransferLeadership transfers the leadership to another voter that stores and reaches a majority. It fails if there is
// none, or if this server does not lead.
func (c *Cluster) TransferLeadership(ctx context.Context) error {
	if c.raft.State() != raft.Leader {
		return fmt.Errorf("raftstore: transfer the leadership: %w", raft.ErrNotLeader)
	}
	voters := slices.DeleteFunc(c.voters(),
		func(v raft.Server) bool { return v.ID == c.id })
	switch able := canLead(ctx, c.replication, voters, 1); {
	case len(able) > 0:
		return c.transferAt(ctx, able[0])
	case ctx.Err() != nil:
		return contextError(ctx)
	}
	return status.Error(codes.Unavailable,
		"raftstore: no other voter can store and reach a majority of the voters at the moment, so none can lead")
}

// prober finds the voters to which a leader can transfer its leadership.
type prober interface {
	reachingMajority(ctx context.Context, of []raft.Server, found func(server raft.Server, fit bool))
	storageProbe(ctx context.Context, enough func(storing) bool) storing
}

// canLead returns the voters that reach a majority and store. The ones that are fit to lead come first. It returns as
// soon as enough of these are found. Raft refuses writes for as long as it tries a transfer to a server that does not
// store. A server that reaches no majority would depose this leader and not be elected.
func canLead(ctx context.Context, p prober, of []raft.Server, enough int) []raft.Server {
	var mu sync.Mutex
	var fit, unfit []raft.Server // the voters that reach a majority
	all := false                 // whether each voter has answered, or will not
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asking.Go(func() {
		p.reachingMajority(ctx, of, func(server raft.Server, isFit bool) {
			mu.Lock()
			defer mu.Unlock()
			if isFit {
				fit = append(fit, server)
			} else {
				unfit = append(unfit, server)
			}
		})
		mu.Lock()
		defer mu.Unlock()
		all = true
	})
	// It does not wait for a voter that is unreachable, and the entry is stored while the others answer: before a stop
	// there is little time.
	stores := p.storageProbe(ctx, func(stores storing) bool {
		mu.Lock()
		defer mu.Unlock()
		if !all {
			return stores.count(fit) >= enough
		}
		able := fit
		if len(fit) == 0 {
			able = unfit
		}
		return stores.count(able) >= min(enough, len(able))
	})
	for {
		mu.Lock()
		able := slices.DeleteFunc(slices.Concat(fit, unfit), func(v raft.Server) bool { return !stores(v.ID) })
		done := all || stores.count(fit) >= enough
		mu.Unlock()
		if done || !timers.Sleep(ctx, probeTick) {
			return able
		}
	}
}

// transferTo transfers the leadership to the voter with this member id, if that voter can lead. r leads.
func transferTo(ctx context.Context, r *replica, p prober, id uint64) error {
	for _, server := range r.raft.GetConfiguration().Configuration().Servers {
		if memberID(string(server.ID)) != id {
			continue
		}
		if server.Suffrage != raft.Voter { // it would depose this leader, and not be elected
			return rpctypes.ErrGRPCBadLeaderTransferee
		}
		if server.ID != r.id && len(canLead(ctx, p, []raft.Server{server}, 1)) == 0 {
			return status.Errorf(codes.Unavailable, "raftstore: member %s cannot store at the moment, "+
				"or does not reach a majority of the voters, so it cannot lead", server.ID)
		}
		return r.transferAt(ctx, server)
	}
	return status.Error(codes.NotFound, "raftstore: no such member")
}

// transferAt transfers the leadership to a voter that can lead.
func (r *replica) transferAt(ctx context.Context, to raft.Server) error {
	return transfer(ctx, func() raft.Future { return r.raft.LeadershipTransferToServer(to.ID, to.Address) })
}

func transfer(ctx context.Context, start func() raft.Future) error {
	done := make(chan error, 1) // the transfer may outlast ctx
	go func() { done <- start().Error() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("raftstore: transfer the leadership: %w", err)
		}
		return nil
	case <-ctx.Done():
		return contextError(ctx)
	}
}
