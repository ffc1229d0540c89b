// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// pollEvery stands in for the kernel's notices where there are none: it gives a user a limited number of inotify
// instances, and other programs may have used them up.
const pollEvery = 15 * time.Second

// watch returns the kernel's notices about the folder, or nil where there are none.
func (f *Folder) watch() *fsnotify.Watcher {
	newWatcher := f.newWatcher
	if newWatcher == nil {
		newWatcher = fsnotify.NewWatcher
	}
	w, err := newWatcher()
	if err == nil {
		if err = w.Add(f.Dir); err == nil {
			return w
		}
		_ = w.Close() // it watches nothing
	}
	f.Logger.Warn("images: a new file in the images folder is not noticed at once but within "+pollEvery.String(), "folder", f.Dir, "error", err)
	return nil
}

// Run imports what is in the folder and then what appears or changes there, until ctx is done. A file is read once it has
// not changed for Settle and nobody has it open for writing.
func (f *Folder) Run(ctx context.Context) error {
	if err := f.open(); err != nil {
		return err
	}
	var events chan fsnotify.Event
	var failures chan error
	var poll <-chan time.Time
	if w := f.watch(); w != nil {
		defer func() { _ = w.Close() }()
		events, failures = w.Events, w.Errors
	} else {
		ticker := time.NewTicker(pollEvery)
		defer ticker.Stop()
		poll = ticker.C
	}
	due := map[string]time.Time{}
	rescan := func() error {
		busy, err := f.scan(ctx)
		for _, name := range busy {
			due[name] = time.Now().Add(f.Settle)
		}
		return err
	}
	if err := rescan(); err != nil && ctx.Err() == nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-poll:
			if err := rescan(); err != nil && ctx.Err() == nil {
				return err
			}
		case ev, ok := <-events:
			if !ok {
				return fmt.Errorf("images: the watch of %s ended", f.Dir)
			}
			if name := filepath.Base(ev.Name); isArchive(name) {
				due[name] = time.Now().Add(f.Settle)
			}
		case err, ok := <-failures:
			if !ok {
				return fmt.Errorf("images: the watch of %s ended", f.Dir)
			}
			f.Logger.Warn("images: events of the images folder were lost, reading it again", "error", err)
			if err := rescan(); err != nil && ctx.Err() == nil {
				return err
			}
		case now := <-timer.C:
			f.handleDue(ctx, now, due)
		}
		timer.Reset(untilNext(due))
	}
}

// handleDue imports the files that have settled and gives those that are still being written more time.
func (f *Folder) handleDue(ctx context.Context, now time.Time, due map[string]time.Time) {
	for name, at := range due {
		if at.After(now) {
			continue
		}
		delete(due, name)
		if errors.Is(f.handle(ctx, name), errBusy) {
			due[name] = time.Now().Add(f.Settle)
		}
	}
}

// untilNext is the time until the earliest due file, or practically for ever.
func untilNext(due map[string]time.Time) time.Duration {
	next := 24 * time.Hour
	for _, at := range due {
		next = min(next, time.Until(at))
	}
	return max(next, 0)
}
