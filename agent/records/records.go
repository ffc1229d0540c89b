// SPDX-License-Identifier: Apache-2.0

// Package records decides, before containerd starts, whether containerd's records can be used, and sets damaged ones
// aside.
//
// It owns the directories ROOT.damaged-N and the files ROOT.json and ROOT.starts, where ROOT is containerd's root
// directory. It deletes nothing but the oldest of more than two directories that it has set aside, and says so. It
// never touches the records of a containerd that runs.
package records

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/boltcheck"
	"github.com/coracle-k8s/coracle/internal/podkill"
)

const (
	// grace is how long containers may run after SIGTERM, when the records by which they are known are set aside.
	grace = 10 * time.Second
	// maxSetAside is how many directories that were set aside stay: each may hold gigabytes of images.
	maxSetAside = 2
	// metaDB is containerd's main file.
	metaDB = "meta.db"
)

// Records are containerd's records on one node.
type Records struct {
	Node   podkill.Node
	Logger *slog.Logger

	// BootIDFile is for tests; empty means the kernel's.
	BootIDFile string
}

// Directory is a directory of records that was set aside.
type Directory struct {
	Path string `json:"path"`
	Why  string `json:"why"`
}

// state is the content of ROOT.json.
type state struct {
	Boot        string      `json:"boot,omitempty"` // in which records were set aside last
	Next        string      `json:"next,omitempty"` // why they are being set aside
	Directories []Directory `json:"directories,omitempty"`
}

// Prepare checks the records, and sets them aside if they are damaged or if containerd twice in a row failed to read
// them. It does so at most once after each boot: a disk that damages them again at once has to be replaced, and Prepare
// returns an error then. unpacked is one more check, which is called if bbolt can open the files. Its error says what
// is wrong. Ended must be called when the start has ended.
func (r *Records) Prepare(ctx context.Context, unpacked func() error) error {
	s, err := r.load()
	if err != nil {
		return err
	}
	why, err := r.damage(unpacked)
	if err != nil { // containerd meets the same obstacle and reports it
		r.Logger.Warn("containerd: its records could not be checked before its start", "error", err)
	}
	boot := r.boot()
	again := boot != "" && s.Boot == boot
	if why = cmp.Or(why, s.Next); why == "" && !again {
		why = r.failedTwice(boot)
	}
	switch {
	case why == "":
	case again:
		return fmt.Errorf("containerd's records are damaged (%s), although they were set aside since this machine booted; nothing was changed. "+
			"Its disk loses what is written: check it (dmesg), replace it, and reboot", why)
	default:
		if err := r.setAside(ctx, s, boot, why); err != nil {
			return fmt.Errorf("containerd's records are damaged (%s) and could not be set aside: %w", why, err)
		}
	}
	return nil
}

// damage returns what is wrong with the records, and "" for intact ones. An error says that this is not known.
func (r *Records) damage(unpacked func() error) (string, error) {
	var files []string
	for _, dir := range []string{r.Node.Root, r.Node.State} {
		found, err := filepath.Glob(filepath.Join(dir, "*", "*.db"))
		if err != nil {
			return "", fmt.Errorf("list the records: %w", err)
		}
		files = append(files, found...)
	}
	files = slices.DeleteFunc(files, func(file string) bool { // bbolt makes an empty file again
		info, err := os.Stat(file)
		return err == nil && info.Size() == 0
	})
	if len(files) > 0 && !slices.ContainsFunc(files, func(file string) bool { return filepath.Base(file) == metaDB }) {
		return metaDB + ": it is empty or gone", nil // containerd starts, and containers that still run are never ended
	}
	for _, file := range files {
		err := boltcheck.CheckUsable(file)
		if damage, ok := errors.AsType[*boltcheck.Error](err); ok {
			return filepath.Base(file) + ": " + damage.Detail, nil
		}
		if err != nil {
			return asDamage(err)
		}
	}
	return asDamage(unpacked())
}

// asDamage returns an error's text if the error is about what the disk holds, and the error if the kernel refused.
func asDamage(err error) (string, error) {
	if err == nil {
		return "", nil
	}
	path, failed := errors.AsType[*fs.PathError](err)
	for _, lost := range []error{unix.EIO, unix.EUCLEAN, unix.EBADMSG} {
		if failed && path.Op == "read" && errors.Is(err, lost) {
			return err.Error(), nil
		}
	}
	if _, refused := errors.AsType[unix.Errno](err); refused && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return err.Error(), nil
}

// setAside ends what still runs, moves the content of the root directory away and empties the state directory. A start
// after an interruption of the move begins again, since the state says so. Until then nothing says it: an operator may
// repair the records after an error.
func (r *Records) setAside(ctx context.Context, s state, boot, why string) error {
	if err := errors.Join(r.save(s), os.MkdirAll(r.Node.Root, 0o711)); err != nil { // on a full disk, containers run on
		return err
	}
	progress := func(text string) { r.Logger.Warn("containerd: its records are set aside", "ending", text) }
	if err := podkill.End(ctx, r.Node, grace, progress); err != nil {
		return fmt.Errorf("end the containers: %w", err)
	}
	// A mount of the operator's below the root stays: renaming it fails, and the error names it.
	if err := podkill.UnmountBelow(r.Node.State, filepath.Join(r.Node.Root, "tmpmounts")); err != nil {
		return err
	}
	root, err := filepath.EvalSymlinks(r.Node.Root)
	if err != nil {
		return err
	}
	before, resumed := len(setAsideBefore(root)), s.Next != ""
	s.Next = why
	if err := r.save(s); err != nil {
		return err
	}
	if err := moveContent(root); err != nil {
		if s.Next = ""; len(setAsideBefore(root)) == before && !resumed {
			err = errors.Join(err, r.save(s)) // nothing was moved
		}
		return err
	}
	return r.finishStart(s, root, boot, why)
}

// finishStart empties the state directory, removes what was set aside long ago, and notes what was set aside.
func (r *Records) finishStart(s state, root, boot, why string) error {
	bundles, err := filepath.Glob(filepath.Join(r.Node.State, "*"))
	for _, b := range bundles {
		err = errors.Join(err, os.RemoveAll(b))
	}
	before := setAsideBefore(root)
	for _, path := range before[:max(0, len(before)-maxSetAside)] {
		r.Logger.Warn("containerd: removing the oldest of the directories that were set aside", "directory", path, "kept", maxSetAside)
		err = errors.Join(err, os.RemoveAll(path))
	}
	s.Boot, s.Next = boot, ""
	s.Directories = existingOf(setAsideBefore(root), s.Directories, why)
	if err := errors.Join(err, r.save(s)); err != nil {
		return err
	}
	r.forget()
	r.Logger.Warn("containerd: its records were damaged and are set aside; images are imported and pulled again", "damage", why,
		"directories", setAsideBefore(root)) // none if an operator had removed the records
	return nil
}

// existingOf returns the directories that exist, with the reason that is known, or else with why.
func existingOf(paths []string, known []Directory, why string) []Directory {
	out := make([]Directory, len(paths))
	for i, path := range paths {
		out[i] = Directory{path, why}
		for _, k := range known {
			if k.Path == path {
				out[i].Why = k.Why
			}
		}
	}
	return out
}

// Problems returns a sentence for each directory beside root that was set aside and still exists.
func Problems(root string) []string {
	var s state
	_, _ = atomicfile.ReadJSON(root+".json", &s) // an unreadable file names nothing
	var out []string
	for _, d := range s.Directories {
		if _, err := os.Stat(d.Path); err == nil {
			out = append(out, fmt.Sprintf("containerd's records were damaged (%s): set aside in %s; images are imported and pulled again. "+
				"Check the disk (dmesg), and remove that directory when all pods run", d.Why, d.Path))
		}
	}
	return out
}

// load reads the state. A damaged file counts as none: it is not worth a node.
func (r *Records) load() (state, error) {
	var s state
	data, err := os.ReadFile(r.Node.Root + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("containerd: read what was set aside: %w", err)
	}
	if json.Unmarshal(data, &s) != nil {
		return state{}, nil
	}
	return s, nil
}

func (r *Records) save(s state) error { return atomicfile.WriteJSON(r.Node.Root+".json", s, 0o600) }

// boot identifies the time since the machine booted. It is empty where the kernel does not say.
func (r *Records) boot() string {
	id, _ := os.ReadFile(cmp.Or(r.BootIDFile, "/proc/sys/kernel/random/boot_id"))
	return string(bytes.TrimSpace(id))
}
