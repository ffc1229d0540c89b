// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"log/slog"
	"time"

	"k8s.io/utils/clock"
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
	// Logger receives what an operator should know. Default: slog.Default().
	Logger *slog.Logger

	// MaxRequestBytes bounds one request. Default 1.5 MiB, as etcd's.
	MaxRequestBytes int
	// MaxTxnOps bounds the operations of one transaction. Default 128.
	MaxTxnOps int
	// HistoryAge is how long old revisions stay readable, for watches that
	// resume and lists that continue. Default 10 minutes. History goes later
	// where there is little of it, and sooner where there is too much.
	HistoryAge time.Duration
	// HistoryBytes bounds the memory of old revisions. Default 64 MiB.
	HistoryBytes int64
	// ProgressInterval is how often a watch that asked for it hears of
	// revisions that had no event for it. Default one minute.
	ProgressInterval time.Duration
	// RequestTimeout bounds a request whose context has no deadline.
	// Default 7 s, as etcd's.
	RequestTimeout time.Duration
	// Clock is for tests.
	Clock clock.WithTicker
}

const (
	defaultMaxRequestBytes  = 3 << 19
	defaultMaxTxnOps        = 128
	defaultProgressInterval = time.Minute
	defaultHistoryAge       = 10 * time.Minute
	defaultHistoryBytes     = 64 << 20
	defaultRequestTimeout   = 7 * time.Second
)

func (o *Options) setDefaults() error {
	if o.Dir == "" {
		return errors.New("raftstore: Options need Dir")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	setDefault(&o.MaxRequestBytes, defaultMaxRequestBytes)
	setDefault(&o.MaxTxnOps, defaultMaxTxnOps)
	setDefault(&o.ProgressInterval, defaultProgressInterval)
	setDefault(&o.HistoryAge, defaultHistoryAge)
	setDefault(&o.HistoryBytes, defaultHistoryBytes)
	setDefault(&o.RequestTimeout, defaultRequestTimeout)
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
