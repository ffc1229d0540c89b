// SPDX-License-Identifier: Apache-2.0

// Package imports gives a machine the images, charts and manifests of bundles: it puts them into the folders from which
// coracle takes such files anyway.
//
// What a bundle named NAME brings is images/NAME.tar, charts/NAME/ and manifests/NAME/. An import first extracts all of
// it to bundles/.NAME.new. One rename to bundles/NAME makes it valid. The files then take the places of those that the
// bundle of that name had before, and bundles/NAME.json, which is the index, takes the place of the folder. A process
// that ends in between leaves the rest to the next import or start (Finish).
//
// The package owns the folder bundles, and what has these names in the three others. It verifies no signatures.
package imports

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/config"
)

const (
	// fresh is the end of the hidden name of what is not complete yet, or not needed any more.
	fresh  = ".new"
	record = ".json" // the end of the name of a bundle's record
	lock   = ".lock"
	// slack is how many bytes have to stay free.
	slack = 64 << 20
)

// ErrBusy says that another process imports a bundle.
var ErrBusy = errors.New("another import is going on on this machine: wait for its end")

// Folders are where bundles are imported to.
type Folders struct {
	// Images has archives of images. Charts and Manifests are empty on an agent, which takes images alone.
	Images, Charts, Manifests string
	// Bundles has the records of imports. Containerd is where images are imported from their archives.
	Bundles, Containerd string
	// After, when set, is called after each step that changes something. Its error ends the operation there. It is for
	// tests of power cuts.
	After func(step string) error
}

// Of returns the folders of a server, or of an agent.
func Of(p config.Paths, agent bool) Folders {
	f := Folders{Images: p.ImagesDir, Charts: p.ChartFolders[0], Manifests: p.ManifestsDir, Bundles: filepath.Join(p.DataDir, "bundles"),
		Containerd: p.ContainerdRoot}
	if agent {
		f.Charts, f.Manifests = "", ""
	}
	return f
}

// Import imports what a verified bundle brings besides the program. It replaces what the bundle of that name brought
// before. A bundle with a lower counter than that one is refused, unless downgrade is set. Nothing has changed after an
// error that begins with "nothing was imported".
func (f Folders) Import(ctx context.Context, b *bundle.Bundle, downgrade bool) error {
	unlock, err := f.lock()
	if err != nil {
		return err
	}
	defer unlock()
	name := b.Index.Contents.Name
	if err := f.finish(); err != nil {
		return fmt.Errorf("finishing an import that was interrupted: %w", err)
	}
	err = f.check(b.Index, downgrade)
	if err == nil {
		err = f.stage(ctx, b)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("nothing was imported: %w", err), os.RemoveAll(f.hidden(name)))
	}
	if err := f.finish(); err != nil {
		return fmt.Errorf("the bundle %s is imported in part; import it again: %w", name, err)
	}
	return nil
}

// Finish finishes imports that were interrupted. It does nothing while another process imports a bundle.
func (f Folders) Finish() error {
	if !isDir(f.Bundles) {
		return nil
	}
	unlock, err := f.lock()
	if errors.Is(err, ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return f.finish()
}

// Imported returns the index of the bundle of a name that was imported last, nil if there is none.
func (f Folders) Imported(name string) (*bundle.Index, error) {
	return bundle.ReadIndex(filepath.Join(f.Bundles, name+record))
}

// check returns the reason why a bundle cannot be imported.
func (f Folders) check(x *bundle.Index, downgrade bool) error {
	c := &x.Contents
	if len(x.Manifests)+len(c.Charts)+len(c.Manifests) == 0 {
		return errors.New("it has no images, charts or manifests")
	}
	if f.Manifests == "" && len(x.Manifests) == 0 {
		return errors.New("it has no images, and charts and manifests are imported on a server, not on an agent")
	}
	had, err := f.Imported(c.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := f.CheckName(c.Name); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("reading what was imported before: %w", err)
	case c.Counter < had.Contents.Counter && !downgrade:
		return fmt.Errorf("it is older than what was imported: its counter is %d, and that of the bundle %s here is %d. To go back on purpose: "+
			"--downgrade", c.Counter, c.Name, had.Contents.Counter)
	}
	return f.checkRoom(x)
}

// CheckName returns an error if what has the name of a bundle in the folders was not brought by a bundle: a bundle of
// that name would take its place.
func (f Folders) CheckName(name string) error {
	if strings.HasSuffix(name, record) {
		return fmt.Errorf("its name %s ends with %s, which records of imports do: give it another name", name, record)
	}
	if exists(filepath.Join(f.Bundles, name+record)) || exists(filepath.Join(f.Bundles, name)) {
		return nil
	}
	places := []string{filepath.Join(f.Images, name+".tar")}
	if f.Manifests != "" {
		places = append(places, filepath.Join(f.Manifests, name), filepath.Join(f.Charts, name))
	}
	for _, path := range places {
		if exists(path) {
			return fmt.Errorf("%s was not brought by a bundle, and one of the name %s would replace it: move it, or give the bundle another name",
				path, name)
		}
	}
	return nil
}

// checkRoom returns an error if a file system lacks room. Images need it twice: for the archive and in containerd. What
// containerd unpacks comes on top, and is not known before.
func (f Folders) checkRoom(x *bundle.Index) error {
	need, where := map[uint64]int64{}, map[uint64]string{}
	device := func(dir string) (dev uint64, err error) {
		var st unix.Stat_t
		for {
			if err = unix.Stat(dir, &st); !errors.Is(err, unix.ENOENT) || filepath.Dir(dir) == dir {
				return st.Dev, err
			}
			dir = filepath.Dir(dir)
		}
	}
	add := func(dir string, n int64) (dev uint64, err error) {
		if dev, err = device(dir); err == nil {
			need[dev] += n
			if where[dev] == "" {
				where[dev] = dir
			}
		}
		return dev, err
	}
	own, err := add(f.Bundles, x.ExtractSize())
	if err != nil {
		return err
	}
	if _, err := add(f.Containerd, x.ImagesSize()); err != nil {
		return err
	}
	if dev, err := device(f.Images); err != nil {
		return err
	} else if dev != own { // else the archive is not copied
		if _, err := add(f.Images, x.ImagesSize()); err != nil {
			return err
		}
	}
	for dev, n := range need {
		dir := where[dev]
		for !isDir(dir) {
			dir = filepath.Dir(dir)
		}
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			return err
		}
		if free := int64(s.Bavail) * s.Bsize; free < n+slack {
			return fmt.Errorf("there is no room: %s has %d MB free, and the import needs %d MB", dir, free>>20, (n+slack)>>20)
		}
	}
	return nil
}

// stage extracts a bundle, and makes the import valid.
func (f Folders) stage(ctx context.Context, b *bundle.Bundle) error {
	name := b.Index.Contents.Name
	if err := os.RemoveAll(f.hidden(name)); err != nil {
		return err
	}
	if err := b.Extract(ctx, f.hidden(name)); err != nil {
		return err
	}
	if err := f.after("extract"); err != nil {
		return err
	}
	if err := os.Rename(f.hidden(name), filepath.Join(f.Bundles, name)); err != nil {
		return err
	}
	return f.synced(f.Bundles, "rename the import")
}

// finish gives the files of all valid imports their places, and removes what interrupted imports have left.
func (f Folders) finish() error {
	entries, err := os.ReadDir(f.Bundles)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case !e.IsDir():
		case strings.HasPrefix(name, "."):
			if err := os.RemoveAll(filepath.Join(f.Bundles, name)); err != nil {
				return err
			}
		default:
			if err := f.finishOne(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f Folders) finishOne(name string) error {
	content := filepath.Join(f.Bundles, name)
	if err := f.place(content, name); err != nil {
		return err
	}
	index, err := os.ReadFile(filepath.Join(content, bundle.IndexFile))
	if err == nil {
		err = atomicfile.Write(content+record, index, 0o600)
	}
	if err == nil {
		err = f.after("record the import")
	}
	if err == nil {
		err = os.Rename(content, f.hidden(name)) // never incomplete under its name
	}
	if err == nil {
		err = f.synced(f.Bundles, "rename what was placed")
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(f.hidden(name))
}

// place puts the files of a folder that was extracted in the places of those that a bundle of that name had before. New
// files come before old ones go, so that no object is ever missing from the manifests that is in both.
func (f Folders) place(content, name string) error {
	archive := filepath.Join(f.Images, name+".tar")
	images := filepath.Join(content, bundle.ImagesFile)
	if exists(images) {
		if err := f.placeFile(images, archive); err != nil {
			return err
		}
	}
	if err := f.placeFiles(content, name); err != nil || exists(images) {
		return err
	}
	return f.removeArchive(archive)
}

func (f Folders) removeArchive(archive string) error {
	if !exists(archive) {
		return nil
	}
	if err := os.Remove(archive); err != nil {
		return err
	}
	return f.synced(f.Images, "remove "+filepath.Base(archive))
}

// placeFiles places the charts and manifests, and removes those that the bundle of that name had before.
func (f Folders) placeFiles(content, name string) error {
	if f.Manifests == "" {
		return nil
	}
	if err := f.placeCharts(filepath.Join(content, bundle.ChartsFolder), name); err != nil {
		return err
	}
	if err := f.placeManifests(content, name); err != nil {
		return err
	}
	if err := f.prune(filepath.Join(content, bundle.ManifestsFolder), filepath.Join(f.Manifests, name)); err != nil {
		return err
	}
	return f.prune(filepath.Join(content, bundle.ChartsFolder), filepath.Join(f.Charts, name))
}

func (f Folders) placeCharts(from, name string) error {
	charts, err := readDir(from)
	for _, c := range charts {
		if err == nil {
			err = f.placeFile(filepath.Join(from, c), filepath.Join(f.Charts, name, c))
		}
	}
	return err
}

// placeManifests writes manifests. Their HelmCharts that name a chart of the bundle get it as content.
func (f Folders) placeManifests(content, name string) error {
	manifests, err := readDir(filepath.Join(content, bundle.ManifestsFolder))
	if err != nil || len(manifests) == 0 {
		return err
	}
	to := filepath.Join(f.Manifests, name)
	if err := mkdirs(to, 0o700); err != nil {
		return err
	}
	for _, m := range manifests {
		data, err := os.ReadFile(filepath.Join(content, bundle.ManifestsFolder, m))
		if err != nil {
			return err
		}
		if data, err = withCharts(data, filepath.Join(content, bundle.ChartsFolder), name); err != nil {
			return fmt.Errorf("the manifest %s: %w", m, err)
		}
		if _, err := atomicfile.WriteIfDifferent(filepath.Join(to, m), data, 0o600); err != nil {
			return err
		}
		if err := f.after("place " + m); err != nil {
			return err
		}
	}
	return nil
}

// placeFile makes a file have a second name, or copies it to another file system. Watchers see it when it is whole.
func (f Folders) placeFile(from, to string) error {
	if same(from, to) {
		return nil
	}
	dir, name := filepath.Split(to)
	hidden := filepath.Join(dir, "."+name+fresh)
	if err := mkdirs(filepath.Clean(dir), 0o755); err != nil {
		return err
	}
	if err := os.Remove(hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Link(from, hidden) != nil { // another file system, or one without links
		if err := copyFile(from, hidden); err != nil {
			return errors.Join(err, os.Remove(hidden))
		}
	}
	if err := f.after("link " + name); err != nil {
		return err
	}
	if err := os.Rename(hidden, to); err != nil {
		return err
	}
	return f.synced(dir, "place "+name)
}

// prune removes the files of a folder that the other one does not have, and the folder if none is left.
func (f Folders) prune(wanted, dir string) error {
	have, err := readDir(dir)
	if err != nil || !isDir(dir) {
		return err
	}
	left := 0
	for _, name := range have {
		if exists(filepath.Join(wanted, name)) {
			left++
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
		if err := f.after("remove " + name); err != nil {
			return err
		}
	}
	if left > 0 {
		return f.synced(dir, "prune")
	}
	if err := os.Remove(dir); err != nil {
		return err
	}
	return f.synced(filepath.Dir(dir), "remove "+dir)
}

func (f Folders) hidden(name string) string { return filepath.Join(f.Bundles, "."+name+fresh) }

func (f Folders) after(step string) error {
	if f.After == nil {
		return nil
	}
	return f.After(step)
}

// synced makes a folder's names durable after a step.
func (f Folders) synced(dir, step string) error {
	if err := f.after(step); err != nil {
		return err
	}
	return atomicfile.SyncDir(dir)
}

// lock keeps other processes from importing until the returned function is called.
func (f Folders) lock() (unlock func(), err error) {
	if err := mkdirs(f.Bundles, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(f.Bundles, lock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrBusy
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() { _ = file.Close() }, nil // nothing was written
}

// mkdirs makes a folder, and makes its name durable.
func mkdirs(dir string, mode fs.FileMode) error {
	if isDir(dir) {
		return nil
	}
	if err := mkdirs(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}

// copyFile copies a file with its time, by which same knows it again.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := os.Chtimes(to, info.ModTime(), info.ModTime()); err != nil {
		return err
	}
	return out.Sync()
}

// same reports whether a file was placed already, by a link or by copyFile.
func same(from, to string) bool {
	a, errA := os.Stat(from)
	b, errB := os.Lstat(to)
	if errA != nil || errB != nil {
		return false
	}
	copied := a.Sys().(*syscall.Stat_t).Dev != b.Sys().(*syscall.Stat_t).Dev
	return os.SameFile(a, b) || copied && b.Mode().IsRegular() && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// readDir returns the names in a folder, which need not exist.
func readDir(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
