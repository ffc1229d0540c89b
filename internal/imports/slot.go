// SPDX-License-Identifier: Apache-2.0

package imports

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/slots"
)

// slotArchive begins the names of archives of slots. No bundle has such a name.
const slotArchive = "_slot-"

// placedSlot is the file .slot in the folder of records: which slots' content was placed last. All are empty before the
// first bundle.
type placedSlot struct {
	// Digest is the version that was handled last. Images is the one whose images were placed last.
	Digest string `json:"digest,omitempty"`
	Images string `json:"images,omitempty"`
	// Name is the bundle whose charts and manifests were placed last.
	Name string `json:"name,omitempty"`
}

// ApplySlot places what the bundle of the current version brings, once after each commit. Its charts and manifests take
// the places of those of the version before. The images of the previous version stay, so that there is a way back. A
// version without a bundle, or whose bundle brings nothing of a kind, changes nothing of that kind.
func (f Folders) ApplySlot(v *slots.Versions) error {
	s, err := v.State()
	if err != nil {
		return err
	}
	content := func(digest string) string { return v.Slot(digest, slots.BundleFolder) }
	var was placedSlot
	if _, err := atomicfile.ReadJSON(filepath.Join(f.Bundles, ".slot"), &was); err != nil {
		return fmt.Errorf("reading which version's bundle was placed last: %w", err)
	}
	isNew := s.Current != "" && s.Current != was.Digest && exists(filepath.Join(content(s.Current), bundle.IndexFile))
	if was.Digest == "" && !isNew {
		return nil
	}
	unlock, err := f.lock()
	if err != nil {
		return err
	}
	defer unlock()
	now := was
	if isNew {
		if now, err = f.applySlot(content(s.Current), s.Current, was); err != nil {
			return err
		}
	}
	if err := f.pruneSlots(s.Current, s.Previous, now.Images); err != nil || now == was {
		return err
	}
	return atomicfile.WriteJSON(filepath.Join(f.Bundles, ".slot"), now, 0o600)
}

// ExtractSlot extracts what a verified bundle brings besides the program into the folder of a version. What was there
// stays until the new content is whole: the version may be the previous one, and have the content of an earlier bundle.
func ExtractSlot(ctx context.Context, b *bundle.Bundle, v *slots.Versions, digest string) error {
	content := v.Slot(digest, slots.BundleFolder)
	next, old := content+fresh, content+".old"
	if err := errors.Join(os.RemoveAll(next), os.RemoveAll(old)); err != nil {
		return err
	}
	if err := b.Extract(ctx, next); err != nil {
		return errors.Join(err, os.RemoveAll(next))
	}
	if err := os.Rename(content, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(next, content); err != nil {
		return err
	}
	return errors.Join(atomicfile.SyncDir(filepath.Dir(content)), os.RemoveAll(old))
}

// applySlot places the content of a slot, and returns what the record has to say then.
func (f Folders) applySlot(content, digest string, was placedSlot) (placedSlot, error) {
	x, err := bundle.ReadIndex(filepath.Join(content, bundle.IndexFile))
	if err != nil {
		return was, fmt.Errorf("the version's bundle: %w", err)
	}
	now, name := was, x.Contents.Name
	now.Digest = digest
	images := filepath.Join(content, bundle.ImagesFile)
	if exists(images) {
		if err := f.placeFile(images, f.slotArchive(digest)); err != nil {
			return was, err
		}
		// An import of the same bundle, or of an earlier one of its name.
		if err := f.removeArchive(filepath.Join(f.Images, name+".tar")); err != nil {
			return was, err
		}
		now.Images = digest
	}
	if len(x.Contents.Charts)+len(x.Contents.Manifests) > 0 {
		if err := f.placeFiles(content, name); err != nil {
			return was, err
		}
		if was.Name != "" && was.Name != name {
			if err := f.placeFiles(filepath.Join(content, "none"), was.Name); err != nil {
				return was, err
			}
		}
		now.Name = name
	}
	index, err := os.ReadFile(filepath.Join(content, bundle.IndexFile))
	if err == nil {
		err = atomicfile.Write(filepath.Join(f.Bundles, name+record), index, 0o600)
	}
	return now, err
}

func (f Folders) slotArchive(digest string) string {
	return filepath.Join(f.Images, slotArchive+slots.Short(digest)+".tar")
}

// pruneSlots removes the archives of versions other than those named.
func (f Folders) pruneSlots(wanted ...string) error {
	names, err := readDir(f.Images)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, digest := range wanted {
		keep[filepath.Base(f.slotArchive(digest))] = digest != ""
	}
	for _, name := range names {
		if strings.HasPrefix(name, slotArchive) && !keep[name] {
			if err := f.removeArchive(filepath.Join(f.Images, name)); err != nil {
				return err
			}
		}
	}
	return nil
}
