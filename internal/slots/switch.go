// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Begin puts a staged version on trial. The starter runs it from its next start on.
func (v *Versions) Begin(digest string) error {
	s, err := v.State()
	if err != nil {
		return err
	}
	if s.Trial != "" {
		return fmt.Errorf("the version %s is on trial already: see coracle upgrade status", Short(s.Trial))
	}
	if s.Current == digest {
		return fmt.Errorf("the version %s is the current one", Short(digest))
	}
	if _, err := os.Stat(v.ProgramOf(digest)); err != nil {
		return fmt.Errorf("the version is not there: %w", err)
	}
	if err := v.clearTries(); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(v.Dir, refused)); err == nil { // it is of the last trial
		err = v.after("unlink refused")
		if err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the record of the last trial: %w", err)
	}
	if err := v.link(trial, digest); err != nil {
		return err
	}
	return v.syncDir()
}

// clearTries makes the file "tries" empty and durable.
func (v *Versions) clearTries() error {
	f, err := os.OpenFile(filepath.Join(v.Dir, tries), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("counting the starts of a trial: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("counting the starts of a trial: %w", err)
	}
	return v.after("sync tries")
}

// Commit makes a version on trial the current one, and the one that was current the previous one. It returns
// ErrNotOnTrial when the starter has taken the way back meanwhile.
func (v *Versions) Commit(digest string) error {
	s, err := v.State()
	if err != nil {
		return err
	}
	if s.Trial != digest {
		return ErrNotOnTrial
	}
	if s.Current != "" && s.Previous != s.Current { // else a loss of power has interrupted an earlier commit
		if err := v.link(previous, s.Current); err != nil {
			return err
		}
		if err := v.syncDir(); err != nil {
			return err
		}
	}
	err = os.Rename(filepath.Join(v.Dir, trial), filepath.Join(v.Dir, current))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotOnTrial
	}
	if err != nil {
		return fmt.Errorf("committing a version: %w", err)
	}
	if err := v.after("rename trial current"); err != nil {
		return err
	}
	return v.syncDir()
}

// Back ends a trial without a commit, for a reason. It returns ErrNotOnTrial when there is none. What runs is not
// changed: the starter runs the current version from its next start on.
func (v *Versions) Back(reason string) error {
	s, err := v.State()
	if err != nil {
		return err
	}
	err = os.Remove(filepath.Join(v.Dir, trial))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotOnTrial
	}
	if err != nil {
		return fmt.Errorf("ending a trial: %w", err)
	}
	if err := v.after("unlink trial"); err != nil {
		return err
	}
	if err := v.syncDir(); err != nil {
		return err
	}
	return v.writeRefusal(Refusal{Digest: s.Trial, Reason: reason})
}

// Short returns the first digits of a digest, for messages.
func Short(digest string) string { return digest[:min(len(digest), 12)] }
