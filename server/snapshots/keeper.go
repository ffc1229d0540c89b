// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/robfig/cron/v3"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/raftstore"
)

// Names of snapshots begin with one of these.
const (
	OnDemandName  = "on-demand"
	ScheduledName = "scheduled"
)

// DefaultRetention is the default number of scheduled snapshots that are kept.
const DefaultRetention = 5

// Options say what a Keeper saves, and where.
type Options struct {
	// Dir is the folder for the snapshots' files.
	Dir string
	// Cluster, Server and Version are written into headers.
	Cluster, Server, Version string
	// Retention is the number of this server's scheduled snapshots that are kept.
	Retention int
	// BeginBackup returns the store's state.
	BeginBackup func(context.Context) (*raftstore.Backup, error)
	// Contents reads the data of the cluster outside the store.
	Contents func() (Contents, error)
	// Key returns the key that encrypts snapshots.
	Key func() (Key, error)

	// Schedule says when snapshots are taken without a request. Nil means never.
	Schedule cron.Schedule
	// Ordinal returns this server's ordinal among all servers. Nil means that it is the only one.
	Ordinal func() Ordinal

	// S3 returns where snapshots are kept besides Dir. If S3 or its result is nil, they are kept only in Dir. ctx may
	// carry the settings of a request (QueryOf).
	S3 func(ctx context.Context) (*config.S3, error)

	// Part, when set, shows the state of the schedule.
	Part   *status.Part
	Clock  clock.WithTicker
	Logger *slog.Logger
}

// Keeper saves, lists and removes the snapshots of one server.
type Keeper struct {
	o      Options
	log    *slog.Logger
	folder folder
	counts counts
	saving sync.Mutex // serializes saving and removing snapshots
}

// NewKeeper returns a Keeper. It does not access the disk.
func NewKeeper(o Options) *Keeper {
	o.Clock = cmp.Or[clock.WithTicker](o.Clock, clock.RealClock{})
	o.Logger = cmp.Or(o.Logger, slog.Default())
	return &Keeper{o: o, log: o.Logger, folder: folder(o.Dir)}
}

// Save saves the current state of the cluster. The file's name begins with name.
func (k *Keeper) Save(ctx context.Context, name string) (Info, error) {
	name = cmp.Or(name, OnDemandName)
	if err := checkName(name); err != nil {
		return Info{}, err
	}
	k.saving.Lock()
	defer k.saving.Unlock()
	b, contents, err := k.capture(ctx)
	if err != nil {
		return Info{}, err
	}
	defer b.Close()
	key, err := k.o.Key()
	if err != nil {
		return Info{}, err
	}
	info, err := k.save(b, contents, key, name, false)
	if err != nil {
		return info, err
	}
	if err := k.copyOut(ctx, info); err != nil {
		return info, fmt.Errorf("the snapshot is saved in %s, but not in the object store: %w", info.Location, err)
	}
	return info, nil
}

// capture returns the store's state and the keys that belong to it. The keys may be replaced at any moment, and with
// other keys a part of the state would not be readable.
func (k *Keeper) capture(ctx context.Context) (*raftstore.Backup, Contents, error) {
	before, err := k.o.Contents()
	for {
		if err != nil {
			return nil, before, err
		}
		b, err := k.o.BeginBackup(ctx)
		if err != nil {
			return nil, before, err
		}
		after, err := k.o.Contents()
		if err == nil && after.Equal(before) {
			return b, before, nil
		}
		b.Close()
		if err != nil {
			return nil, before, err
		}
		before = after
	}
}

func (k *Keeper) save(b *raftstore.Backup, contents Contents, key Key, name string, scheduled bool) (Info, error) {
	now := k.o.Clock.Now().UTC()
	h := Header{
		Cluster: k.o.Cluster, Server: k.o.Server, Version: k.o.Version, Time: now, Revision: b.Revision(), Keys: b.Keys(),
		Content: contentHash(b, contents, key), Scheduled: scheduled, Level: level.Field(b.Level()),
	}
	info, err := k.folder.save(strings.Join([]string{name, k.o.Server, formatStamp(now)}, "-"), func(w io.Writer) error {
		return write(w, h, key, contents, b.WritePacked)
	})
	if err == nil {
		k.counts.lastSize.Store(info.Size)
	}
	return info, err
}

// withBucket calls f with the S3 bucket, if one is configured.
func (k *Keeper) withBucket(ctx context.Context, f func(context.Context, *bucket) error) error {
	if k.o.S3 == nil {
		return nil
	}
	o, err := k.o.S3(ctx)
	if err != nil || o == nil {
		return err
	}
	b, err := openBucket(o)
	if err != nil {
		return err
	}
	defer b.close()
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	return f(ctx, b)
}

// copyOut copies a snapshot to S3, unless S3 has it.
func (k *Keeper) copyOut(ctx context.Context, i Info) error {
	return k.withBucket(ctx, func(ctx context.Context, b *bucket) error {
		if there, err := b.hasSnapshot(ctx, i); err != nil || there {
			return err
		}
		if err := b.upload(ctx, i.Name, i.Location); err != nil {
			return err
		}
		_, err := b.hasSnapshot(ctx, i) // another server may have written another file of this name at the same moment
		return err
	})
}

// List returns all snapshots: first those of this machine, the oldest first, then those on S3. If S3 fails, the list
// has an entry with the error.
func (k *Keeper) List(ctx context.Context) ([]Info, error) {
	list, err := k.folder.list()
	if err != nil {
		return nil, err
	}
	if err := k.withBucket(ctx, func(ctx context.Context, b *bucket) error {
		more, err := b.list(ctx, "", isName)
		list = append(list, more...)
		return err
	}); err != nil {
		list = append(list, Info{Location: "S3", Problem: err.Error()})
	}
	return list, nil
}

// Delete removes snapshots by name, from the folder and from S3. It returns the names of those that it removed.
func (k *Keeper) Delete(ctx context.Context, names []string) (deleted []string, err error) {
	k.saving.Lock()
	defer k.saving.Unlock()
	for _, name := range names {
		localErr := k.folder.delete(name)
		remoteErr := errNotThere
		if err := k.withBucket(ctx, func(ctx context.Context, b *bucket) error {
			remoteErr = b.delete(ctx, name)
			return nil
		}); err != nil {
			remoteErr = err
		}
		switch {
		case localErr != nil && !errors.Is(localErr, errNotThere):
			err = errors.Join(err, fmt.Errorf("%s: %w", name, localErr))
		case remoteErr != nil && !errors.Is(remoteErr, errNotThere):
			err = errors.Join(err, fmt.Errorf("%s: %w", name, remoteErr))
		case localErr != nil && remoteErr != nil:
			err = errors.Join(err, fmt.Errorf("%s: %w", name, errNotThere))
		}
		if localErr == nil || remoteErr == nil {
			deleted = append(deleted, name)
		}
	}
	return deleted, err
}

// ConfiguredRetention as the number for Prune keeps as many snapshots as the schedule keeps of its own: here the
// Retention of the Options, on S3 that of its settings.
const ConfiguredRetention = -1

// Prune removes this server's snapshots of this name, on this machine and on S3, except for the newest keep. It returns
// the names of those that it removed. Damaged snapshots are neither counted nor removed. A request may set another
// number for S3 (QueryOf).
func (k *Keeper) Prune(ctx context.Context, name string, keep int) ([]string, error) {
	k.saving.Lock()
	defer k.saving.Unlock()
	name = cmp.Or(name, OnDemandName)
	mine, here := k.series(name), keep
	if keep == ConfiguredRetention {
		here = k.o.Retention
	}
	deleted, err := k.folder.prune(here, mine, "")
	remoteErr := k.withBucket(ctx, func(ctx context.Context, b *bucket) error {
		keepThere := keep
		if keep == ConfiguredRetention || QueryOf(ctx).Values[config.S3Retention] != "" {
			keepThere = b.o.Retention
		}
		more, err := b.prune(ctx, keepThere, mine, "")
		for _, name := range more {
			if !slices.Contains(deleted, name) {
				deleted = append(deleted, name)
			}
		}
		return err
	})
	return deleted, errors.Join(err, remoteErr)
}

// series is the snapshots that one server has saved with one name. A bucket may be shared with other servers, clusters
// and programs.
type series struct {
	name, server, cluster string
	scheduled             bool // scheduled snapshots only
}

func (k *Keeper) series(name string) series {
	return series{name: name, server: k.o.Server, cluster: k.o.Cluster}
}

func (k *Keeper) scheduledSeries() series {
	return series{name: ScheduledName, server: k.o.Server, cluster: k.o.Cluster, scheduled: true}
}

// prefix returns the prefix of their names.
func (s series) prefix() string { return s.name + "-" + s.server + "-" }

// matchesName says whether a server has chosen a file's name. Another snapshot name may have the same prefix, and a
// user may have made a copy to keep.
func (s series) matchesName(file string) bool {
	at, ok := strings.CutPrefix(file, s.prefix())
	_, err := time.Parse(stampForm, at)
	return ok && err == nil
}

func (s series) contains(i Info) bool {
	return s.matchesName(i.Name) && i.Server == s.server && i.Cluster == s.cluster && (i.Scheduled || !s.scheduled)
}

// trivialPrefixes are prefixes of keys whose changes are no reason for a snapshot, since they change all the time in an
// idle cluster. Of nodes, which report every five minutes, only their number is a reason: a change of a node's labels
// or taints alone is none.
var trivialPrefixes = []string{"/registry/leases/", "/registry/masterleases/", "/registry/events/", "/registry/events.k8s.io/"}

const nodesPrefix = "/registry/minions/"

// contentHash returns a hash of everything that a user would miss. The header has it in clear. It cannot be used to
// find out a token, since the hash covers the authorities' keys, which cannot be guessed.
func contentHash(b *raftstore.Backup, c Contents, key Key) string {
	newest, _ := b.Changed(append(trivialPrefixes, nodesPrefix)...)
	_, keys := b.Changed(trivialPrefixes...)
	sum := sha256.New()
	fmt.Fprintf(sum, "%d\n%d\n%q\n", newest, keys, key.passphrase)
	for _, name := range slices.Sorted(maps.Keys(c.Files)) {
		fmt.Fprintf(sum, "%q\n%q\n", name, c.Files[name])
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}
