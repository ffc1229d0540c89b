// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// transferWithin bounds the transfer of the leadership at the end.
const transferWithin = time.Second

// TransferBeforeStop gives the leadership to another voter, so that a server that stops
// in good order leaves no gap.
func (c *Cluster) TransferBeforeStop() bool {
	if lead, _ := c.leadership.get(); !lead.Leader || !c.othersVote() {
		return false
	}
	ctx, cancel := context.WithTimeout(c.ctx, transferWithin)
	defer cancel()
	if err := c.TransferLeadership(ctx); err != nil {
		c.log.Warn("could not transfer the store's leadership before stopping", "err", err)
		return false
	}
	return true
}

// MoveLeader makes the voter with this member id lead; like etcd's, it is for
// the leader.
func (c *Cluster) MoveLeader(ctx context.Context, id uint64) error {
	if lead, _ := c.leadership.get(); !lead.Leader {
		return rpctypes.ErrGRPCNotLeader
	}
	if id == c.memberID {
		return nil
	}
	err := transferTo(ctx, c.replica, c.replication.storageProbe, id)
	if status.Code(err) == codes.NotFound {
		return rpctypes.ErrGRPCBadLeaderTransferee
	}
	return proposeErrorOrNil(ctx, err)
}

// TransferLeadership makes another voter lead that stores. It fails if there is none, or if this server does not lead.
func (c *Cluster) TransferLeadership(ctx context.Context) error {
	if c.raft.State() != raft.Leader {
		return fmt.Errorf("raftstore: transfer the leadership: %w", raft.ErrNotLeader)
	}
	voters := votersOf(c.raft.GetConfiguration().Configuration().Servers)
	target := -1
	c.replication.storageProbe(ctx, func(stores storing) bool {
		target = slices.IndexFunc(voters, func(v raft.Server) bool { return v.ID != c.id && stores(v.ID) })
		return target >= 0
	})
	switch {
	case target >= 0:
		return c.transferAt(ctx, voters[target])
	case ctx.Err() != nil:
		return contextError(ctx)
	}
	return status.Error(codes.Unavailable, "raftstore: no other voter stores anything at the moment, so none can lead")
}

// transferTo makes the voter with this number lead, if it stores. r leads, and probe says who stores.
func transferTo(
	ctx context.Context, r *replica, probe func(context.Context, func(storing) bool) storing, id uint64,
) error {
	for _, server := range r.raft.GetConfiguration().Configuration().Servers {
		if memberID(string(server.ID)) == id {
			if server.Suffrage != raft.Voter { // it would depose this one, and not be elected
				return rpctypes.ErrGRPCBadLeaderTransferee
			}
			// Raft refuses writes for as long as it tries to reach it.
			stored := func(stores storing) bool { return stores(server.ID) }
			if server.ID != r.id && !stored(probe(ctx, stored)) {
				return status.Errorf(codes.Unavailable,
					"raftstore: member %s does not store anything at the moment, so it cannot lead", server.ID)
			}
			return r.transferAt(ctx, server)
		}
	}
	return status.Error(codes.NotFound, "raftstore: no such member")
}

// transferAt makes a voter lead that is known to store.
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
