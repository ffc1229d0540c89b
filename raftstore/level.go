// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// Two numbers must not be confused:
//
//   - The cluster's level says in which forms its servers write. It is stored under level.Key, only Raise writes it, and
//     it never falls.
//   - A member's newest level says what its program can read and write. It is part of its address for raft:
//     HOST:PORT#RANDOM@LEVEL, without @LEVEL for level 1. So it is in raft's configuration: all servers know it from the
//     same log entry on, also of members that are down. A server that comes back with another program announces its new
//     level as it announces a new address. It may be lower than before, but not lower than the cluster's.

// withLevel returns the raft address with the newest level of the member's program, as ADDRESS@LEVEL. Level 1 is not
// written.
func withLevel(address raft.ServerAddress, newest int) raft.ServerAddress {
	if newest <= level.First {
		return address
	}
	return address + raft.ServerAddress("@"+strconv.Itoa(newest))
}

func levelOf(address raft.ServerAddress) int {
	_, member, _ := strings.Cut(string(address), "#")
	_, text, _ := strings.Cut(member, "@")
	if n, ok := level.Parse(text); ok {
		return n
	}
	return level.First
}

// level returns the cluster's level: that of the applied entries, or of the directory while older entries are applied
// again.
func (r *replica) level() int { return max(int(r.fsm.level.Load()), r.dir.Level()) }

// connectLevel returns the level at which this server connects to others.
func (r *replica) connectLevel() int { return max(int(r.fsm.connectLevel.Load()), r.dir.Level()) }

// checkReadable returns an error if a server cannot become or stay a member, since the others write what it cannot
// read. The caller holds raising.
func (r *replica) checkReadable(address raft.ServerAddress) error {
	newest, now := levelOf(address), r.level()
	if newest >= now {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition,
		"raftstore: the version of the server at %s is too old: it knows levels up to %d, and the cluster has level %d. "+
			"Nothing was changed. Start it with the version that the other servers run", dialAddress(address), newest, now)
}

// lockLevel waits until no other goroutine changes the level or adds a member. Without it, a server could be added that
// was checked against the level before.
func (r *replica) lockLevel(ctx context.Context) (unlock func(), err error) {
	select {
	case r.raising <- struct{}{}:
		return func() { <-r.raising }, nil
	case <-ctx.Done():
		return nil, contextError(ctx)
	}
}

// followLevel records the cluster's level in the directory, and passes it on, whenever it is ahead of them. It repeats
// that until it succeeds or ctx is done.
func (r *replica) followLevel(ctx context.Context) {
	const retry = time.Second
	for done := 0; ; {
		timers.Retry(ctx, r.log, retry, "the cluster's level could not be recorded; trying again", func() error {
			now := r.level()
			if now <= done {
				return nil
			}
			err := r.dir.RecordLevel(now)
			if on := r.opts.OnLevel; on != nil {
				err = errors.Join(err, on(now))
			}
			if err == nil {
				done = now
			}
			return err
		})
		select {
		case <-r.fsm.leveled:
		case <-ctx.Done():
			return
		}
	}
}

// Level returns the cluster's level, as far as this server knows.
func (c *Cluster) Level() int { return c.level() }

type raiseCall struct {
	To    int
	Check bool `json:",omitempty"` // only says what holds the level up
}

// RaiseLevel raises the cluster's level by one, to level to, if the programs of all members know that. Nothing lowers
// it again. If it is as high already, nothing happens. The error names the members that hold it up.
func (c *Cluster) RaiseLevel(ctx context.Context, to int) error {
	_, err := atLeader(ctx, c.leaderRoute, callRaise, raiseCall{To: to}, c.serveRaise)
	return err
}

// CheckRaise returns the error that RaiseLevel would return now, and changes nothing.
func (c *Cluster) CheckRaise(ctx context.Context, to int) error {
	_, err := atLeader(ctx, c.leaderRoute, callRaise, raiseCall{To: to, Check: true}, c.serveRaise)
	return err
}

// putLevel returns the request that stores a cluster's level.
func putLevel(to int) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(level.Key), Value: []byte(strconv.Itoa(to))}
}

func (c *Cluster) serveRaise(ctx context.Context, r raiseCall) (emptyReply, error) {
	unlock, err := c.lockLevel(ctx)
	if err != nil {
		return emptyReply{}, callError(err)
	}
	raising := false // then storeLevel's goroutine holds it
	defer func() {
		if !raising {
			unlock()
		}
	}()
	lead, _ := c.leadership.get()
	if !lead.Leader {
		return emptyReply{}, errNotLeader
	}
	switch now := c.level(); {
	case r.To <= now:
		return emptyReply{}, nil
	case r.To != now+1:
		return emptyReply{}, status.Errorf(codes.InvalidArgument, "raftstore: the cluster has level %d, and is raised by one at a time", now)
	}
	if behind := c.behind(ctx, r.To); len(behind) > 0 {
		return emptyReply{}, status.Errorf(codes.FailedPrecondition, "raftstore: level %d is not known to the programs of these servers: %s. "+
			"Nothing was changed. Upgrade them, or remove those that are gone for good", r.To, strings.Join(behind, ", "))
	}
	if ctx.Err() != nil { // behind may not have asked all that are up
		return emptyReply{}, contextError(ctx)
	}
	if r.Check {
		return emptyReply{}, nil
	}
	done := make(chan error, 1)
	raising = c.spawn(func() {
		defer unlock()
		done <- c.storeLevel(r.To, lead.Term)
	})
	if !raising {
		return emptyReply{}, ErrClosed
	}
	select {
	case err := <-done:
		return emptyReply{}, err
	case <-ctx.Done():
		return emptyReply{}, contextError(ctx)
	}
}

// storeLevel stores a level in the term in which this server leads. Until it returns, the entry may be committed, even
// if the caller of RaiseLevel has given up, and no member may be added that cannot read what follows it. The caller
// holds raising.
func (c *Cluster) storeLevel(to int, term uint64) error {
	_, err := c.writer.inTerm(c.ctx, mvcc.Command{Request: putLevel(to)}, term, nil)
	switch {
	case errors.Is(err, mvcc.ErrFenced):
		return errNotLeader
	case err != nil:
		return callError(err)
	}
	c.log.Info("the cluster's level was raised", "level", to)
	return nil
}

// behind describes the members whose programs do not know a level. Those of the newest configuration in the log count,
// whether they are up or have a vote. A member that is up is also asked: it may have come back with an older program a
// moment ago. One that does not reply is as one that is down and comes back so later: nothing reaches it that it cannot
// read (TestScenarioMissedRaise).
func (c *Cluster) behind(ctx context.Context, to int) []string {
	members, _ := c.dir.Log.Members()
	behind := askMembers(ctx, members.Servers, func(ctx context.Context, m raft.Server) (string, bool) {
		newest := c.newestOf(m)
		if m.ID != c.id {
			if info, err := c.requestInfo(ctx, c.replication.Call, m); err == nil {
				newest = min(newest, max(info.Newest, level.First))
			}
		}
		return fmt.Sprintf("%s (level %d)", disk.NodeOf(string(m.ID)), newest), newest < to
	}, nil)
	slices.Sort(behind)
	return behind
}

// newestOf returns the newest level that a member's program knows, as the member announced it.
func (c *Cluster) newestOf(m raft.Server) int {
	if c.opts.Network == nil {
		return c.opts.newest
	}
	return levelOf(m.Address)
}
