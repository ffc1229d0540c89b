// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/coracle-k8s/coracle/internal/filewatch"
)

// Run imports the archives of the folder, and then those that are added or change, until ctx is done. A file is read
// once it has not changed for Settle and no program has it open for writing.
func (f *Folder) Run(ctx context.Context) error {
	if err := f.open(); err != nil {
		return err
	}
	w := filewatch.New(filewatch.Options{What: "the images folder", Board: f.Board, Logger: f.Logger, New: f.newWatcher})
	defer w.Close()
	w.Add(f.Dir)
	due := map[string]time.Time{}
	var pins time.Time // when settlePins is due
	rescan := func() error {
		busy, err := f.scan(ctx)
		for _, name := range busy {
			due[name] = time.Now().Add(f.Settle)
		}
		pins = f.settlePins(ctx, time.Now())
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
		case <-w.Poll():
			w.Add(f.Dir)
			if err := rescan(); err != nil && ctx.Err() == nil {
				return err
			}
		case ev := <-w.Events():
			if name := filepath.Base(ev.Name); isArchive(name) {
				due[name] = time.Now().Add(f.Settle)
			}
		case err := <-w.Errors():
			f.Logger.Warn("images: events of the images folder were lost; reading the folder again", "error", err)
			if err := rescan(); err != nil && ctx.Err() == nil {
				return err
			}
		case now := <-timer.C:
			f.handleDue(ctx, now, due)
			pins = f.settlePins(ctx, now)
		}
		timer.Reset(untilNext(due, pins))
	}
}

// handleDue imports the files that have settled. Those that are still being written get more time.
func (f *Folder) handleDue(ctx context.Context, now time.Time, due map[string]time.Time) {
	for name, at := range due {
		if at.After(now) {
			continue
		}
		delete(due, name)
		if errors.Is(f.importIfNew(ctx, name), errBusy) {
			due[name] = time.Now().Add(f.Settle)
		}
	}
}

// untilNext returns the time until the earliest file is due, or the pins are if that time is not zero. It returns a day
// if there is none.
func untilNext(due map[string]time.Time, pins time.Time) time.Duration {
	next := 24 * time.Hour
	if !pins.IsZero() {
		next = min(next, time.Until(pins))
	}
	for _, at := range due {
		next = min(next, time.Until(at))
	}
	return max(next, 0)
}
