// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/raftstore"
)

const (
	// startupDelay is the time between the server's start and a snapshot that was missed while the server was off: by
	// then the cluster is idle again.
	startupDelay = 5 * time.Minute
	// retryDelay is the pause after a failed snapshot.
	retryDelay = 15 * time.Minute
	// pollPeriod is the longest wait until the clock is read again. The clock may have been set, and timers do not
	// follow that.
	pollPeriod = 10 * time.Minute
)

// Ordinal is this server's number among the servers, from 0 on, and how many there are.
type Ordinal struct{ Number, Of int }

// OrdinalAmong returns a server's ordinal among the members of the store. All servers have the same members, so no two
// have the same ordinal.
func OrdinalAmong(members []raftstore.Member, server string) Ordinal {
	out := Ordinal{Of: max(1, len(members))}
	for _, m := range members {
		if m.Name < server {
			out.Number++
		}
	}
	return out
}

// slot is when a server saves: at the schedule's time, shifted by the server's share of the interval between two of
// these times. So the servers write one after the other, and the cluster's newest snapshot is younger.
type slot struct {
	schedule cron.Schedule
	shift    time.Duration
}

func newSlot(s cron.Schedule, p Ordinal, now time.Time) slot {
	out := slot{schedule: s}
	if p.Of > 1 {
		out.shift = (shortestInterval(s, now) * time.Duration(p.Number) / time.Duration(p.Of)).Truncate(time.Second)
	}
	return out
}

// shortestInterval returns the shortest interval between the schedule's next times.
func shortestInterval(s cron.Schedule, now time.Time) time.Duration {
	shortest := time.Duration(0)
	at := s.Next(now)
	for range 8 {
		next := s.Next(at)
		if d := next.Sub(at); !next.IsZero() && (shortest == 0 || d < shortest) {
			shortest = d
		}
		at = next
	}
	return shortest
}

// nextAfter returns the first time after t, or zero if there is none.
func (s slot) nextAfter(t time.Time) time.Time {
	at := s.schedule.Next(t.Add(-s.shift))
	if at.IsZero() {
		return at
	}
	return at.Add(s.shift)
}

// Run saves the cluster by schedule until ctx is done.
func (k *Keeper) Run(ctx context.Context) {
	if err := k.removeHalves(); err != nil {
		k.log.Warn("the remains of an interrupted snapshot could not be removed", "error", err)
	}
	if k.o.Schedule == nil {
		k.o.Part.Set(status.Disabled, "snapshots are taken only on request: coracle snapshot save")
		return
	}
	k.o.Part.Set(status.Running, "")
	last := k.o.Clock.Now()
	// A snapshot that was due while the server was off is made up for. A cluster without snapshots waits for the
	// schedule.
	due := k.missedTime(last)
	var stuck *notInS3 // the snapshot that due is to copy to S3; nil if due is for a new one
	for {
		now := k.o.Clock.Now()
		if now.Before(last) {
			last = now // the clock was set back
		}
		next, again := newSlot(k.o.Schedule, k.ordinal(), now).nextAfter(last), false
		if !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next, again = due, stuck != nil
		}
		if next.IsZero() {
			k.o.Part.Set(status.Degraded, "the schedule for snapshots has no next time; check --snapshot-schedule-cron")
			return
		}
		if wait := next.Sub(now); wait > 0 {
			select {
			case <-ctx.Done():
				return
			case <-k.o.Clock.After(min(wait, pollPeriod)):
			}
			continue
		}
		var err error
		if due = (time.Time{}); again { // the schedule continues from its own last time
			err = k.retryUpload(ctx, stuck.info)
		} else {
			last = now
			err = k.scheduled(ctx)
		}
		stuck = nil
		if err != nil && ctx.Err() == nil {
			errors.As(err, &stuck)
			k.log.Error("the scheduled snapshot failed; retrying", "after", retryDelay, "error", err)
			k.o.Part.Set(status.Degraded, fmt.Sprintf(
				"the scheduled snapshot failed, retrying every %v; earlier snapshots are kept: %v", retryDelay, err))
			due = k.o.Clock.Now().Add(retryDelay)
			continue
		}
		k.o.Part.Set(status.Running, "")
	}
}

// removeHalves waits for a snapshot that a user has already requested: its file is a half until it is complete.
func (k *Keeper) removeHalves() error {
	k.saving.Lock()
	defer k.saving.Unlock()
	return k.folder.removeHalves()
}

func (k *Keeper) ordinal() Ordinal {
	if k.o.Ordinal == nil {
		return Ordinal{Of: 1}
	}
	return k.o.Ordinal()
}

// missedTime returns when to take a snapshot that was missed, zero if none was.
func (k *Keeper) missedTime(now time.Time) time.Time {
	newest, err := k.newest()
	if err != nil || newest == nil || newest.Time.After(now) {
		return time.Time{}
	}
	if next := newSlot(k.o.Schedule, k.ordinal(), now).nextAfter(newest.Time); next.IsZero() || next.After(now) {
		return time.Time{}
	}
	return now.Add(startupDelay)
}

// newest returns this server's newest snapshot, nil if there is none.
func (k *Keeper) newest() (*Info, error) {
	list, err := k.folder.list()
	if err != nil {
		return nil, err
	}
	var newest *Info
	for i := range list {
		if list[i].Problem == "" && list[i].Server == k.o.Server && list[i].Cluster == k.o.Cluster &&
			(newest == nil || byAge(list[i], *newest) > 0) {
			newest = &list[i]
		}
	}
	return newest, nil
}

// notInS3 is the error when a scheduled snapshot is on this machine, and S3 does not have it or has too many older
// ones. The snapshot must not be taken again for that: while S3 is unreachable for a day, each attempt would add one,
// and those of earlier days would be pruned.
type notInS3 struct {
	info Info
	err  error
}

func (e *notInS3) Error() string { return e.err.Error() }
func (e *notInS3) Unwrap() error { return e.err }

// scheduled saves the cluster, if it has changed, and removes snapshots beyond the retention. The error is a notInS3 if
// everything succeeded on this machine.
func (k *Keeper) scheduled(ctx context.Context) error {
	k.saving.Lock()
	defer k.saving.Unlock()
	info, err := k.scheduledInFolder(ctx)
	if err == nil {
		err = k.scheduledInS3(ctx, *info)
	}
	return k.count(err)
}

// retryUpload repeats the S3 steps of scheduled after a notInS3. It repeats all of scheduled if the file has been
// removed in the meantime.
func (k *Keeper) retryUpload(ctx context.Context, info Info) error {
	if _, err := os.Lstat(info.Location); err != nil {
		return k.scheduled(ctx)
	}
	k.saving.Lock()
	defer k.saving.Unlock()
	return k.count(k.scheduledInS3(ctx, info))
}

// scheduledInFolder takes a snapshot, unless the newest one has the same content. It returns the newest one.
func (k *Keeper) scheduledInFolder(ctx context.Context) (*Info, error) {
	b, contents, err := k.capture(ctx)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	key, err := k.o.Key()
	if err != nil {
		return nil, err
	}
	info, err := k.unchanged(contentHash(b, contents, key))
	if err != nil {
		return nil, err
	}
	if info == nil {
		saved, err := k.save(b, contents, key, ScheduledName, true)
		if err != nil {
			return nil, err
		}
		k.log.Info("took a snapshot of the cluster", "snapshot", saved.Name, "revision", saved.Revision, "bytes", saved.Size)
		info = &saved
	} else {
		k.log.Info("nothing has changed since the newest snapshot; skipping the scheduled one", "snapshot", info.Name)
	}
	_, err = k.folder.prune(k.o.Retention, k.scheduledSeries(), info.Name)
	return info, err
}

func (k *Keeper) scheduledInS3(ctx context.Context, info Info) error {
	if err := k.copyOut(ctx, info); err != nil {
		return &notInS3{info, fmt.Errorf("%s is on this machine, but not in the object store: %w", info.Name, err)}
	}
	if err := k.withBucket(ctx, func(ctx context.Context, b *bucket) error {
		_, err := b.prune(ctx, b.o.Retention, k.scheduledSeries(), info.Name)
		return err
	}); err != nil {
		return &notInS3{info, fmt.Errorf("%s is on this machine and in the object store; older ones could not be removed there: %w", info.Name, err)}
	}
	return nil
}

// unchanged returns this server's newest snapshot if it has everything that a user would miss, and else nil. It reads
// the whole file: a damaged file is no reason to take none.
func (k *Keeper) unchanged(content string) (*Info, error) {
	newest, err := k.newest()
	if err != nil || newest == nil || newest.Content != content {
		return nil, err
	}
	f, err := os.Open(newest.Location)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := verify(f); errors.Is(err, ErrDamaged) {
		k.log.Warn("the newest snapshot is damaged; another one is taken", "snapshot", newest.Name, "error", err)
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return newest, nil
}
