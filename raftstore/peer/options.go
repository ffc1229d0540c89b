// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

const (
	defaultTimeout = time.Second
	// entriesTimeout is the least time for entries: the answer waits for the
	// peer's disk, and giving up early means to send the same again.
	entriesTimeout = 5 * time.Second
	// entriesRate, in bytes per second, is what a link carries at least: a message gets so much more time. A client's
	// largest write, 1.5 MiB, gets 48 s.
	entriesRate = 32 << 10
	// votesTimeout is the least time for a vote, of which the answer waits for up to four flushes of the peer's disk.
	// One that comes later is lost, and a disk of three seconds would never elect anybody.
	votesTimeout = 15 * time.Second
	// snapshotStall is how long a snapshot may stand still.
	snapshotStall = 20 * time.Second
	// snapshotSilence is how long a server that gets a snapshot waits for more
	// of it: raft's main loop is the one that waits, so it neither votes nor
	// elects meanwhile.
	snapshotSilence = 5 * time.Second
	// snapshotRate, in bytes per second, is what a peer restores at least.
	snapshotRate = 2 << 20
	// MaxCall is the largest body of a call, in bytes.
	MaxCall = 16 << 20
	// MaxReply is that of an answer, which is as large as what was asked for:
	// etcd's limit.
	MaxReply = math.MaxInt32 - callOverhead
)

// Options say who this server is and how it reaches others.
type Options struct {
	Cluster string // "" if not known yet: then there are calls but no raft
	ID      string // raft's ServerID, or "" as for Cluster
	Address string // where others reach this server; raft's LocalAddr

	// Listener gives connections from other servers, already authenticated. The
	// transport closes it. Nil: this transport only dials.
	Listener net.Listener
	// Dial gives an authenticated connection.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	Logger *slog.Logger // nil discards

	// Withhold says that messages that keep or win leadership must not be sent
	// now. It is called for each, so it must be quick. Nil never withholds.
	Withhold func() bool

	// Follows says that raft follows that leader in that term, now. It must be
	// quick, whatever raft waits for. Nil: raft has to answer every heartbeat
	// itself.
	Follows func(leader raft.ServerID, term uint64) bool

	// Next returns the entries behind one of a leader's term, as many as there are and take no more than so many bytes
	// (see EntryBytes). None if this server may not lead the term any more. Nil: raft alone says what a message
	// carries.
	Next func(term, after uint64, bytes int) []*raft.Log

	// Stands, if set, is called when a leader has handed over to this server, before raft learns of it. It must be
	// quick.
	Stands func()

	// Snapshot and Install keep from raft what this server holds already: see
	// appendfilter.Filter. Nil Snapshot: raft gets every message as it came.
	Snapshot func() (index, term uint64)
	Install  func() (done func(), err error)

	// Handle answers calls of other servers; from is the caller's raft ServerID,
	// or "" while it has no identity. Its error goes back as a gRPC status. The
	// body is its own. Nil refuses all calls.
	Handle func(ctx context.Context, from, method string, body []byte) ([]byte, error)

	// Timeout is how long a heartbeat, a vote or a connection may take, three to
	// five election timeouts for example. Entries get five times as much, at
	// least 5 s, because their answers wait for a disk, and a second more for each
	// 32 KiB; and snapshots as long as they make progress. 0 is one second.
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
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	return nil
}
