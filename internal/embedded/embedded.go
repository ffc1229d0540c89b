// SPDX-License-Identifier: Apache-2.0

// Package embedded holds the programs embedded in coracle: runc, the shim and CNI helper, the ingress proxy, a packet
// filter program and the pause image. They are unpacked once into the data directory, in a folder named by their
// content hash.
//
// It owns the folder bin/ of the data directory and nothing else. It starts no program and needs no network. `make
// embedded` (packaging/embedded.sh) builds the programs. In a coracle built without them, unpacking returns
// ErrNotEmbedded, and everything else compiles and can be tested.
//
// Its goroutines: one for each program that is unpacked.
package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/embedded/index"
)

// PauseImage is the name of the image in the file pause.tar of a Dir.
const PauseImage = "docker.io/coracle/pause:1"

// ErrNotEmbedded says that this binary was built without its embedded programs.
var ErrNotEmbedded = errors.New("this binary was built without its embedded programs; build it with: make build")

// Dir is an unpacked set of programs. It has runc, coracle-helper (also by the names containerd-shim-runc-v2 and
// coracle-cni), coracle-ingress and pause.tar. It also has nft, with the folder nftables/ from which nft runs.
type Dir struct {
	// Path is <data directory>/bin/<content hash>. Programs at this path do not change while they run.
	Path string
	// Stable is <data directory>/bin/current, a link to Path. A later version of coracle changes the link to its own
	// set. Use Stable for paths that are recorded for later, as containerd records its shim's path.
	Stable string

	// lockFD is the descriptor of a shared lock on Path. While this process lives, the lock prevents another version's
	// Unpack from removing the set. It is no os.File, because the finalizer would close that when a caller keeps only
	// the path.
	lockFD int
}

// File returns the path of one of the set's files.
func (d Dir) File(name string) string { return filepath.Join(d.Path, name) }

// Close releases the set, from which this process starts no more programs. Exiting has the same effect.
func (d Dir) Close() error { return unix.Close(d.lockFD) }

// Unpack unpacks the embedded programs below dataDir/bin, unless they are there, and removes sets of other versions
// that no process uses. It checks each file's checksum while unpacking. They appear all at once or not at all. That
// holds also after a power cut, and when several processes unpack at once. When the set is there already, nothing is
// written.
func Unpack(dataDir string) (Dir, error) {
	sub, err := fs.Sub(embedded, embeddedRoot)
	if err != nil {
		return Dir{}, fmt.Errorf("open the embedded programs: %w", err)
	}
	return unpack(sub, filepath.Join(dataDir, "bin"), "/proc")
}

func unpack(src fs.FS, bin, proc string) (Dir, error) {
	x, text, err := readIndex(src)
	if err != nil {
		return Dir{}, err
	}
	d := Dir{Path: filepath.Join(bin, index.Hash(text)), Stable: filepath.Join(bin, "current")}
	for {
		if !isComplete(x, d.Path) || !pointsTo(d.Stable, d.Path) {
			if err := install(src, x, bin, d); err != nil {
				return Dir{}, explainError(err, bin, x.Bytes())
			}
		}
		held, err := d.lockShared()
		if err != nil {
			return Dir{}, explainError(err, bin, x.Bytes())
		}
		if held {
			break
		} // another version removed the set meanwhile: try again
	}
	// An error of prune is ignored: an old set wastes space only, but a failed start would cost a node.
	_ = prune(bin, filepath.Base(d.Path), proc)
	return d, nil
}

// readIndex returns the index of the set, and its text, whose hash names the set.
func readIndex(src fs.FS) (x index.Index, text []byte, err error) {
	text, err = fs.ReadFile(src, index.FileName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, ErrNotEmbedded
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the embedded programs: %w", err)
	}
	x, err = index.Parse(text)
	return x, text, err
}

// UnpackNFT unpacks nft alone into the new folder dir. It is for tests. A node needs the whole set: see Unpack.
func UnpackNFT(dir string) error {
	sub, err := fs.Sub(embedded, embeddedRoot)
	if err != nil {
		return fmt.Errorf("open the embedded programs: %w", err)
	}
	x, _, err := readIndex(sub)
	if err != nil {
		return err
	}
	want := func(path string) bool { return path == "nft" || filepath.Dir(path) == "nftables" }
	linked := map[string]bool{}
	for _, e := range x {
		linked[e.Link] = linked[e.Link] || want(e.Path)
	}
	return write(sub, slices.DeleteFunc(x, func(e index.Entry) bool { return !want(e.Path) && !linked[e.Path] }), dir)
}

// lockShared takes the shared lock. It returns false when the locked folder has been removed or replaced meanwhile.
func (d *Dir) lockShared() (bool, error) {
	fd, err := openLocked(d.Path, unix.LOCK_SH)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !sameFile(fd, d.Path) {
		return false, unix.Close(fd)
	}
	d.lockFD = fd
	return true, nil
}
