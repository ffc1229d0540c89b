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
	// settle is how long after the start a snapshot is taken that was missed while the server was off: by then the
	// cluster has come to rest.
	settle = 5 * time.Minute
	// retry is how long after a failure it is tried again.
	retry = 15 * time.Minute
	// pollPeriod is how long at most until the clock is read again: it may have been set, and timers do not follow
	// that.
	pollPeriod = 10 * time.Minute
)

// Ordinal is which of the servers this one is, from 0 on, and how many there are.
type Ordinal struct{ Number, Of int }

// OrdinalAmong is a server's ordinal among the members of the store. All servers have the same members, so that no two
// have one ordinal.
func OrdinalAmong(members []raftstore.Member, server string) Ordinal {
	out := Ordinal{Of: max(1, len(members))}
	for _, m := range members {
		if m.Name < server {
			out.Number++
		}
	}
	return out
}

// slot is when a server saves: the schedule's time, later by its share of the pause between two of them. So the servers
// write one after the other, and the cluster's newest snapshot is younger.
type slot struct {
	schedule cron.Schedule
	shift    time.Duration
}

func newSlot(s cron.Schedule, p Ordinal, now time.Time) slot {
	out := slot{schedule: s}
	if p.Of > 1 {
		out.shift = (pause(s, now) * time.Duration(p.Number) / time.Duration(p.Of)).Truncate(time.Second)
	}
	return out
}

// pause is the shortest time between two of the schedule's next times.
func pause(s cron.Schedule, now time.Time) time.Duration {
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

// next is the first time after t; zero if there is none.
func (s slot) next(t time.Time) time.Time {
	at := s.schedule.Next(t.Add(-s.shift))
	if at.IsZero() {
		return at
	}
	return at.Add(s.shift)
}

// Run saves the cluster by schedule until ctx is done.
func (k *Keeper) Run(ctx context.Context) {
	if err := k.removeHalves(); err != nil {
		k.log.Warn("what an interrupted snapshot left was not removed", "error", err)
	}
	if k.o.Schedule == nil {
		k.o.Part.Set(status.Disabled, "snapshots are taken only on request: coracle snapshot save")
		return
	}
	k.o.Part.Set(status.Running, "")
	last := k.o.Clock.Now()
	// What was due while the server was off is made up for. A cluster without snapshots waits for the schedule.
	due := k.missed(last)
	var stuck *notInS3 // what due is for, if it is not another snapshot
	for {
		now := k.o.Clock.Now()
		if now.Before(last) {
			last = now // the clock was set back
		}
		next, again := newSlot(k.o.Schedule, k.ordinal(), now).next(last), false
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
		if due = (time.Time{}); again { // the schedule goes on from its own last time
			err = k.again(ctx, stuck.info)
		} else {
			last = now
			err = k.scheduled(ctx)
		}
		stuck = nil
		if err != nil && ctx.Err() == nil {
			errors.As(err, &stuck)
			k.log.Error("the scheduled snapshot failed; it is tried again", "after", retry, "error", err)
			k.o.Part.Set(status.Degraded, fmt.Sprintf(
				"the scheduled snapshot failed, and is tried again every %v; earlier ones are kept: %v", retry, err))
			due = k.o.Clock.Now().Add(retry)
			continue
		}
		k.o.Part.Set(status.Running, "")
	}
}

// removeHalves waits for a snapshot that a user has asked for already: its file is a half until it is whole.
func (k *Keeper) removeHalves() error {
	k.one.Lock()
	defer k.one.Unlock()
	return k.folder.removeHalves()
}

func (k *Keeper) ordinal() Ordinal {
	if k.o.Ordinal == nil {
		return Ordinal{Of: 1}
	}
	return k.o.Ordinal()
}

// missed is when a snapshot is due that was missed, zero if none was.
func (k *Keeper) missed(now time.Time) time.Time {
	newest, err := k.newest()
	if err != nil || newest == nil || newest.Time.After(now) {
		return time.Time{}
	}
	if next := newSlot(k.o.Schedule, k.ordinal(), now).next(newest.Time); next.IsZero() || next.After(now) {
		return time.Time{}
	}
	return now.Add(settle)
}

// newest is this server's newest snapshot, nil if there is none.
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

// notInS3 says that a scheduled snapshot is on this machine, and that S3 does not have it, or has too many older
// ones. The snapshot need not be taken again for that: while S3 is away for a day, one more each time would push those
// of the days before out of the folder.
type notInS3 struct {
	info Info
	err  error
}

func (e *notInS3) Error() string { return e.err.Error() }
func (e *notInS3) Unwrap() error { return e.err }

// scheduled saves the cluster, if there is anything new, and removes what is more than the schedule keeps. The error is
// a notInS3 if all is well on this machine.
func (k *Keeper) scheduled(ctx context.Context) error {
	k.one.Lock()
	defer k.one.Unlock()
	info, err := k.scheduledInFolder(ctx)
	if err == nil {
		err = k.scheduledInS3(ctx, *info)
	}
	return k.count(err)
}

// again does what is left of scheduled after a notInS3: all of it if the file has been removed meanwhile.
func (k *Keeper) again(ctx context.Context, info Info) error {
	if _, err := os.Lstat(info.Location); err != nil {
		return k.scheduled(ctx)
	}
	k.one.Lock()
	defer k.one.Unlock()
	return k.count(k.scheduledInS3(ctx, info))
}

// scheduledInFolder returns the newest snapshot, which it has taken unless there was one of what is there now.
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
	info, err := k.unchanged(content(b, contents, key))
	if err != nil {
		return nil, err
	}
	if info == nil {
		saved, err := k.save(b, contents, key, ScheduledName, true)
		if err != nil {
			return nil, err
		}
		k.log.Info("the cluster was saved", "snapshot", saved.Name, "revision", saved.Revision, "bytes", saved.Size)
		info = &saved
	} else {
		k.log.Info("nothing has changed since the newest snapshot, so that no other one is taken", "snapshot", info.Name)
	}
	_, err = k.prune(k.o.Retention, k.ownScheduled(), info.Name)
	return info, err
}

func (k *Keeper) scheduledInS3(ctx context.Context, info Info) error {
	if err := k.copyOut(ctx, info); err != nil {
		return &notInS3{info, fmt.Errorf("%s is on this machine, but not elsewhere: %w", info.Name, err)}
	}
	if err := k.withBucket(ctx, func(ctx context.Context, b *bucket) error {
		_, err := b.prune(ctx, b.o.Retention, k.ownScheduled(), info.Name)
		return err
	}); err != nil {
		return &notInS3{info, fmt.Errorf("%s is on this machine and elsewhere; older ones are not removed there: %w", info.Name, err)}
	}
	return nil
}

// unchanged returns this server's newest snapshot if it holds all that a user would miss, nil if not. It reads the
// file: one that the disk has lost is no reason to take none.
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
