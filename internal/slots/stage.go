// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// slack is how many bytes have to stay free beside a new program: for the tools that it unpacks, a snapshot, and for
// the store and the pods to go on.
const slack = 256 << 20

// unfinished is the end of the name of a folder whose program is not whole yet.
const unfinished = ".new"

// Digest returns the SHA-256 of a file in hexadecimal, which is the name of the version that the program is.
func Digest(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("reading the program: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("reading the program: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// Stage copies a program with this digest to its folder, and makes it durable. A version that is there already, and
// whole, is not copied, but made durable again: the process that copied it may have ended before it was. "previous" and
// all folders that are not needed are removed before a copy, because a small disk has room for two programs and not for
// three. Prune removes a staged version unless Begin has linked it.
func (v *Versions) Stage(file, digest string) error {
	if have, err := Digest(v.ProgramOf(digest)); err == nil && have == digest {
		return v.syncSlot(digest)
	}
	if err := v.makeRoom(); err != nil {
		return err
	}
	in, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("reading the program: %w", err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("reading the program: %w", err)
	}
	if err := v.checkRoom(info.Size(), 0); err != nil {
		return err
	}
	return v.copySlot(in, digest)
}

// StageFrom is Stage for a program that is read from elsewhere, and has the given size in bytes. extra is how many
// bytes the caller adds to the version's folder. It removes other versions only where room lacks for another one beside
// them, and where that gives enough: the new version may still be refused before it is tried.
func (v *Versions) StageFrom(program io.Reader, digest string, size, extra int64) error {
	if have, err := Digest(v.ProgramOf(digest)); err == nil && have == digest {
		if err := v.checkRoom(extra, 0); err != nil {
			return err
		}
		return v.syncSlot(digest)
	}
	if v.checkRoom(size+extra, 0) != nil {
		reclaimed, err := v.reclaimable()
		if err != nil {
			return fmt.Errorf("reading how much room other versions take: %w", err)
		}
		if err := v.checkRoom(size+extra, reclaimed); err != nil {
			return err
		}
		if err := v.makeRoom(); err != nil {
			return err
		}
	}
	return v.copySlot(program, digest)
}

// reclaimable returns how many bytes makeRoom frees. Files that have names elsewhere stay.
func (v *Versions) reclaimable() (n int64, err error) {
	s, err := v.State()
	if err != nil {
		return 0, err
	}
	s.Previous = ""
	unused, err := v.unused(s, false)
	for _, name := range unused {
		err = errors.Join(err, filepath.WalkDir(filepath.Join(v.Dir, name), func(path string, d fs.DirEntry, err error) error {
			var stat unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &stat)
			}
			if err == nil && !d.IsDir() && stat.Nlink == 1 {
				n += stat.Blocks * 512
			}
			return err
		}))
	}
	return n, err
}

// makeRoom removes all versions but the current one and that on trial.
func (v *Versions) makeRoom() error {
	if err := v.dropPrevious(); err != nil {
		return err
	}
	return v.prune(false)
}

// copySlot makes the folder of a version from its program.
func (v *Versions) copySlot(program io.Reader, digest string) error {
	slot := filepath.Join(v.Dir, digest)
	if err := mkdir(slot + unfinished); err != nil {
		return fmt.Errorf("making a folder for the version: %w", err)
	}
	err := v.after("mkdir slot.new")
	if err == nil {
		err = v.copyProgram(program, filepath.Join(slot+unfinished, Program), digest)
	}
	if err == nil {
		err = atomicfile.SyncDir(slot + unfinished)
	}
	if err == nil {
		err = v.after("sync slot.new")
	}
	if err == nil {
		err = os.Rename(slot+unfinished, slot)
	}
	if err == nil {
		err = v.after("rename slot.new slot")
	}
	if err != nil {
		return fmt.Errorf("copying the program to %s: %w. What runs was not changed", v.Dir, err)
	}
	return v.syncDir()
}

// checkRoom returns an error if the file system lacks room for a version of this size in bytes, also once some others
// are reclaimed.
func (v *Versions) checkRoom(size, reclaimed int64) error {
	free, err := v.free(v.Dir)
	if err != nil {
		return fmt.Errorf("reading how much room there is in %s: %w", v.Dir, err)
	}
	if free, need := free+reclaimed, size+slack; free < need {
		return fmt.Errorf("%s has %d MB free, and an upgrade needs %d MB. What runs was not changed: free some space and try again", v.Dir,
			free>>20, need>>20)
	}
	return nil
}

// copyProgram copies a program, and checks the digest of what it copies.
func (v *Versions) copyProgram(in io.Reader, to, digest string) (err error) {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, sum), in); err != nil {
		return err
	}
	if err := v.after("write program"); err != nil {
		return err
	}
	if have := hex.EncodeToString(sum.Sum(nil)); have != digest {
		return fmt.Errorf("the program has changed while it was copied: its SHA-256 is %s, and was %s", have, digest)
	}
	if err := out.Chmod(0o755); err != nil { // umask must not decide
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	if err := dropCache(out); err != nil {
		return err
	}
	return v.after("sync program")
}

// dropCache removes a program from the page cache. Linux keeps what was just written in blocks of up to 2 MB, and maps
// them whole, so that the program would take 40 MB more memory than one that is read from the disk (docs/adr/0057).
func dropCache(f *os.File) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// syncSlot makes a version that is there durable.
func (v *Versions) syncSlot(digest string) error {
	f, err := os.Open(v.ProgramOf(digest))
	if err != nil {
		return fmt.Errorf("reading the program: %w", err)
	}
	if err := errors.Join(f.Sync(), dropCache(f), f.Close(), atomicfile.SyncDir(v.Slot(digest, ""))); err != nil {
		return fmt.Errorf("writing the program to the disk: %w", err)
	}
	if err := v.after("sync slot"); err != nil {
		return err
	}
	return v.syncDir()
}

// dropPrevious removes the link "previous".
func (v *Versions) dropPrevious() error {
	err := os.Remove(filepath.Join(v.Dir, previous))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing the version before the present one: %w", err)
	}
	if err := v.after("unlink previous"); err != nil {
		return err
	}
	return v.syncDir()
}

// Prune removes the folders that no link names. It keeps that of a refused version until the refusal was reported: what
// failed is in it. The caller has the lock.
func (v *Versions) Prune() error { return v.prune(true) }

func (v *Versions) prune(keepRefused bool) error {
	s, err := v.State()
	if err != nil {
		return err
	}
	unused, err := v.unused(s, keepRefused)
	if err != nil {
		return err
	}
	for _, name := range unused {
		if err := os.RemoveAll(filepath.Join(v.Dir, name)); err != nil {
			return fmt.Errorf("removing a version that is not used: %w", err)
		}
		if err := v.after("remove " + name); err != nil {
			return err
		}
	}
	return nil
}

// unused returns the folders of versions that a state does not name.
func (v *Versions) unused(s State, keepRefused bool) (names []string, err error) {
	entries, err := os.ReadDir(v.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the versions of coracle: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		if !e.IsDir() || !digestForm.MatchString(strings.TrimSuffix(name, unfinished)) {
			continue
		}
		unreported := keepRefused && s.Refused != nil && !s.Refused.Reported && name == s.Refused.Digest
		if !unreported && name != s.Current && name != s.Trial && name != s.Previous {
			names = append(names, name)
		}
	}
	return names, nil
}
