// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/level"
)

const (
	defaultTimeout = time.Second
	// entriesTimeout is the least timeout for entries. Their answer waits for the peer's disk. If it runs out too
	// early, the same entries have to be sent again.
	entriesTimeout = 5 * time.Second
	// entriesRate, in bytes per second, is the least rate that a link is expected to have. A message's timeout grows by
	// its size at that rate. A client's largest write, 1.5 MiB, gets 48 s.
	entriesRate = 32 << 10
	// votesTimeout is the least timeout for a vote. The answer waits for up to four flushes of the peer's disk, and is
	// lost if it comes later. With a shorter timeout, disks that take three seconds could never elect a leader.
	votesTimeout = 15 * time.Second
	// snapshotStall is how long a snapshot may make no progress.
	snapshotStall = 20 * time.Second
	// snapshotSilence is how long a server that receives a snapshot waits for more of it. It waits in raft's main loop,
	// so it neither votes nor becomes a candidate in that time.
	snapshotSilence = 5 * time.Second
	// snapshotRate, in bytes per second, is the least rate at which a peer is expected to restore a snapshot.
	snapshotRate = 2 << 20
	// MaxCall is the largest body of a call, in bytes.
	MaxCall = 16 << 20
	// MaxReply is the largest body of an answer, in bytes. Answers are as large as the request demands: etcd's limit.
	MaxReply = math.MaxInt32 - callOverhead
)

// Options say who this server is and how it reaches others.
type Options struct {
	Cluster string // "" if not known yet: then calls are possible, but not raft
	ID      string // raft's ServerID, or "" as for Cluster
	Address string // where others reach this server; raft's LocalAddr

	// Newest is the newest level that this server knows. 0 means level.Newest. Level returns the level at which this
	// server connects to others. It must be quick. Nil: level.First.
	Newest int
	Level  func() int

	// Listener accepts connections of other servers, which it has authenticated. The transport closes it. Nil: this
	// transport only dials.
	Listener net.Listener
	// Dial makes an authenticated connection.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	Logger *slog.Logger // nil discards

	// Withhold says whether messages that keep or win leadership must not be sent now. It is called for each of them,
	// so it must be quick. Nil never withholds.
	Withhold func() bool

	// Follows says whether raft follows that leader in that term now. It must be quick, even if raft waits for a disk.
	// Nil: raft has to answer every heartbeat itself.
	Follows func(leader raft.ServerID, term uint64) bool

	// Next returns the log entries behind the entry after, for a message of the leader of a term. It returns as many as
	// fit into so many bytes (see EntryBytes), and none if this server may not lead the term any more. Nil: raft alone
	// decides what a message carries.
	Next func(term, after uint64, bytes int) []*raft.Log

	// OnTransfer, if set, is called when a leader transfers its leadership to this server, before raft learns of it. It
	// must be quick.
	OnTransfer func()

	// Snapshot and Install keep from raft what this server has already: see appendfilter.Filter. Nil Snapshot: raft
	// gets every message as it arrived.
	Snapshot func() (index, term uint64)
	Install  func() (done func(), err error)

	// Handle answers calls of other servers. from is the caller's raft ServerID, or "" while it has no identity. Its
	// error is sent back as a gRPC status. It may keep and change body. Nil refuses all calls.
	Handle func(ctx context.Context, from, method string, body []byte) ([]byte, error)

	// Answered and Unanswered, if set, are called with the address of a server that was called. Answered: anything has
	// arrived from it since the call began. Unanswered: there was no connection to it, or nothing has arrived until the
	// call ended, or for as long as silentAfter while the call waits. Both must be quick.
	Answered, Unanswered func(address string)

	// Wall returns what this server's clock shows. Nil: time.Now. Compared, if set, is called when that was compared
	// with another server's clock. It must be quick.
	Wall     func() time.Time
	Compared func(id raft.ServerID, o Offset)

	// Timeout is how long a heartbeat, a pre-vote or a connection may take, for example three to five election
	// timeouts. Votes get five times as much, at least 15 s. Entries get five times as much, at least 5 s, because
	// their answers wait for a disk, and a second more for each 32 KiB. A snapshot may take as long as it makes
	// progress. 0 is one second.
	Timeout time.Duration
}

func (o *Options) complete() error {
	if o.Dial == nil {
		return errors.New("peer: Options.Dial is missing")
	}
	for _, s := range []string{o.Cluster, o.ID} {
		if len(s) > maxName {
			return errors.New("peer: cluster and server ids have at most 255 bytes")
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Newest = cmp.Or(o.Newest, level.Newest())
	if o.Level == nil {
		o.Level = func() int { return level.First }
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	return nil
}
