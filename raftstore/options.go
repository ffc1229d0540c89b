// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/metrics"
)

// Options configure a store. All fields but Dir have a default, which their zero value selects.
type Options struct {
	// Dir is the directory of all of the store's files. It is made if it is missing. Only one process at a time may use
	// it.
	Dir string
	// NodeID, if set, must be the name that the directory was made with. A new directory gets this name, or a random
	// one if NodeID is empty.
	NodeID string
	// ClusterID, if set, must be the one that the directory was made with. A new directory gets this id, or a random
	// one if ClusterID is empty.
	ClusterID string
	// Version is the program's version. Hostname is this server's name for people. Other servers show both in their
	// Survey, and they have no other use.
	Version, Hostname string
	// Logger receives what an operator should know. Default: slog.Default().
	Logger *slog.Logger

	// MaxRequestBytes bounds one request. Default 1.5 MiB, as etcd's.
	MaxRequestBytes int
	// MaxTxnOps bounds the operations of one transaction. Default 128.
	MaxTxnOps int
	// HistoryAge is how long old revisions stay readable, for watches that resume and lists that continue, unless they
	// exceed HistoryBytes. After twice this time they are compacted. Default 5 minutes, as upstream's.
	HistoryAge time.Duration
	// HistoryBytes bounds the memory that old revisions use. Default 32 MiB, or a quarter of the quota if that is less.
	HistoryBytes int64
	// ProgressInterval is the interval of progress notifications, for watches that request them. Default one minute.
	ProgressInterval time.Duration
	// RequestTimeout bounds a request whose context has no deadline.
	// Default 7 s, as etcd's.
	RequestTimeout time.Duration
	// QuotaBytes bounds the memory that keys and history use together. Beyond it, writes that add anything are refused
	// with etcd's ErrNoSpace, but deletions are not. Default: what the memory of the machine, or of the control group,
	// allows (see quotaOf), and at most 2 GiB, as etcd's.
	QuotaBytes int64
	// Counters count what the store does, see Store.Collector. Nil: the store makes its own.
	Counters *metrics.Counters
	// Clock replaces the real clock. Only tests set it.
	Clock clock.WithTicker
	// Wall returns what this machine's clock shows, which is compared with the clocks of the other servers. Default:
	// time.Now.
	Wall func() time.Time
	// ClockTolerance is how far this machine's clock may be off from those of a majority before this server stops
	// leading. Default one hour.
	ClockTolerance time.Duration

	// Network connects the store to the other servers. Nil: the cluster has one server.
	Network *Network
	// Join are addresses of servers of a cluster. If Dir holds nothing yet,
	// the store joins that cluster instead of starting one.
	Join []string
	// Share, if set, is called by a server that asks to join. It returns what this server has in common with the others
	// and the log does not hold. The result is sent to the leader.
	Share func() string
	// Admit, if set, is called by the leader before a server becomes a new member. share is the result of that server's
	// Share, or "" if it has none. An error refuses the server, which tries again. release is called when the server is
	// a member, or when adding it failed.
	Admit func(share string) (release func(), err error)
	// Renew, if set, is called by a server that was refused because it shares something else than the others (Admit's
	// error wraps ErrShare). It fetches again what the server shares. Then the server asks to join again.
	Renew func(ctx context.Context) error
	// Others, if set, lists further addresses at which other servers may be by now. It is called repeatedly while the
	// cluster does not have this server at its present address, and must not block.
	Others func() []string
	// ElectionTimeout is how long a server waits for its leader before it stands for election itself. Default 300 ms. A
	// leader whose process exits is replaced sooner, see leaderGone.
	ElectionTimeout time.Duration
	// Faults are injected faults of the disk, for tests.
	Faults disk.Faults
	// MaxVoters bounds the voters. Further servers store everything, and get a vote when a voter is lost. It must be
	// odd. Default 5.
	MaxVoters int
	// MaxMembers bounds the members: a further server is refused, and tries again. 0: no bound.
	MaxMembers int

	// Level is the level of a directory that is made new: that of the cluster which it joins. 0 means the newest level
	// for a new cluster, and the oldest that this program knows for a server that joins.
	Level int
	// OnLevel, if set, is called with the cluster's level at the start and after each raise. If it returns an error, it
	// is called again. Close waits for it.
	OnLevel func(level int) error

	newest   int              // level.Newest(), or another one in tests
	outdated func(why string) // ends a program that does not know the cluster's level: panic, except in tests
}

// A Network connects a store to the other servers. Its connections are authenticated and encrypted: any peer that can
// open one is trusted.
type Network struct {
	// Address is what the other servers dial.
	Address string
	// Listener accepts connections of the other servers. The store closes it.
	Listener net.Listener
	// Dial opens a connection to another server's Address.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

const (
	defaultMaxRequestBytes  = 3 << 19
	defaultMaxTxnOps        = 128
	defaultProgressInterval = time.Minute
	defaultHistoryAge       = 5 * time.Minute
	defaultHistoryBytes     = 32 << 20
	defaultRequestTimeout   = 7 * time.Second
	defaultElectionTimeout  = 300 * time.Millisecond
	defaultMaxVoters        = 5
	defaultClockTolerance   = time.Hour
)

func (o *Options) setDefaults() error {
	if o.Dir == "" {
		return errors.New("raftstore: Options need Dir")
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	setDefault(&o.MaxRequestBytes, defaultMaxRequestBytes)
	setDefault(&o.MaxTxnOps, defaultMaxTxnOps)
	setDefault(&o.ProgressInterval, defaultProgressInterval)
	setDefault(&o.HistoryAge, defaultHistoryAge)
	setDefault(&o.RequestTimeout, defaultRequestTimeout)
	if o.QuotaBytes == 0 {
		o.QuotaBytes = defaultQuota(o.Logger)
	}
	setDefault(&o.HistoryBytes, min(defaultHistoryBytes, o.QuotaBytes/4))
	setDefault(&o.ElectionTimeout, defaultElectionTimeout)
	setDefault(&o.MaxVoters, defaultMaxVoters)
	setDefault(&o.ClockTolerance, defaultClockTolerance)
	setDefault(&o.newest, level.Newest())
	if o.MaxVoters%2 == 0 {
		return errors.New("raftstore: MaxVoters must be odd")
	}
	if o.Network != nil && (o.Network.Address == "" || o.Network.Listener == nil || o.Network.Dial == nil) {
		return errors.New("raftstore: Network needs Address, Listener and Dial")
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Counters == nil {
		o.Counters = metrics.NewCounters()
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
