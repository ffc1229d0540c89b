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

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/metrics"
)

// Options configure a store. The zero value of every field but Dir means its
// default.
type Options struct {
	// Dir holds everything the store keeps. It is made if it is missing. One
	// process at a time may use it.
	Dir string
	// NodeID, if set, must be the name that the directory was made with; a new
	// directory takes it over. Empty: a new directory gets a random one.
	NodeID string
	// ClusterID, if set, must be the one that the directory was made with; a
	// new directory takes it over. Empty: a new directory gets a random one.
	ClusterID string
	// Version is the program's, Hostname what people call this server. Other servers'
	// Survey shows both; nothing else goes by them.
	Version, Hostname string
	// Logger receives what an operator should know. Default: slog.Default().
	Logger *slog.Logger

	// MaxRequestBytes bounds one request. Default 1.5 MiB, as etcd's.
	MaxRequestBytes int
	// MaxTxnOps bounds the operations of one transaction. Default 128.
	MaxTxnOps int
	// HistoryAge is how long old revisions stay readable, for watches that
	// resume and lists that continue, unless there are too many of them. After
	// twice this time they are gone. Default 5 minutes, as upstream's.
	HistoryAge time.Duration
	// HistoryBytes bounds the memory of old revisions. Default 32 MiB, or a
	// quarter of the quota if that is less.
	HistoryBytes int64
	// ProgressInterval is how often a watch that asked for it hears how far
	// the store is. Default one minute.
	ProgressInterval time.Duration
	// RequestTimeout bounds a request whose context has no deadline.
	// Default 7 s, as etcd's.
	RequestTimeout time.Duration
	// QuotaBytes bounds the memory of keys and history together: beyond it,
	// writes that add anything are refused with etcd's ErrNoSpace, deletions
	// are not. Default: what the memory of the machine, or of the control group,
	// allows (see quotaOf), and at most 2 GiB, as etcd's.
	QuotaBytes int64
	// Counters are where the store counts what it does. Nil: its own. See
	// Store.Collector.
	Counters *metrics.Counters
	// Clock is for tests.
	Clock clock.WithTicker

	// Network connects the store with the other servers'. Nil: the cluster has
	// one server.
	Network *Network
	// Join are addresses of servers of a cluster. If Dir holds nothing yet,
	// the store joins that cluster instead of starting one.
	Join []string
	// Share is what a server tells the leader of what it has in common with the others and the log does not hold, when
	// it asks to be taken in.
	Share func() string
	// Admit is asked on the leader before a server becomes a member that was none; share is what that server's Share
	// said, "" from one without. An error refuses the server, which tries again. release is called when the server is a
	// member, or when that failed.
	Admit func(share string) (release func(), err error)
	// Renew, if set, is called on a server that was refused since what it shares is not what the others have (Admit's
	// error wraps ErrShare), before it asks again. It gets that again.
	Renew func(ctx context.Context) error
	// Others, if set, lists further addresses at which other servers may be by now.
	// It is asked while this server's address is not the cluster's yet, again and
	// again, and must not block.
	Others func() []string
	// ElectionTimeout is how long a server waits for its leader before it
	// stands for election itself. Default 300 ms.
	// A leader whose process ends is replaced sooner, see suspect.go.
	ElectionTimeout time.Duration
	// Faults make the disk misbehave, for tests.
	Faults disk.Faults
	// MaxVoters bounds the voters; further servers get everything and vote when
	// one of the others is gone. Odd. Default 5.
	MaxVoters int
	// MaxMembers bounds the members: a further server is refused, and tries again. 0: no bound.
	MaxMembers int

	level int // newestLevel, or less in tests
}

// A Network is how a store reaches the other servers and is reached by them.
// Its connections are authenticated and encrypted: who can open one is trusted.
type Network struct {
	// Address is what the other servers dial.
	Address string
	// Listener gives the other servers' connections. The store closes it.
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
	setDefault(&o.level, newestLevel)
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
