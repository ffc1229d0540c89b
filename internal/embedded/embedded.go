// SPDX-License-Identifier: Apache-2.0

// Package embedded holds the programs embedded in coracle: runc, the shim and CNI helper, kubectl, helm and ctr,
// a packet filter program and the pause image. They lie compressed inside the binary and are unpacked once, by content
// hash, into the data directory.
//
// It owns the folder bin/ of the data directory and nothing else: it starts no program, and it needs no network.
// What goes in is built by `make embedded` (packaging/embedded.sh); a coracle built without that says so when it is
// asked to unpack, so that everything else compiles and tests without it.
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

// PauseImage is the name of the image in Dir's pause.tar.
const PauseImage = "docker.io/coracle/pause:1"

// ErrNotEmbedded says that this binary was built without its helper programs.
var ErrNotEmbedded = errors.New("this binary was built without its embedded programs; build it with: make build")

// Dir is an unpacked set. It has runc, coracle-helper (also by the names containerd-shim-runc-v2 and coracle-cni),
// coracle-tools (also kubectl, ctr and helm), pause.tar, and nft with the folder nftables/ that it runs from.
type Dir struct {
	// Path is <data directory>/bin/<content hash>. Programs found by it stay the same as long as they run.
	Path string
	// Stable is <data directory>/bin/current, a link to Path that a later version of coracle moves to its own set.
	// Use it where a path is recorded for later, as containerd does with its shim's.
	Stable string

	// use is a shared lock on Path, which keeps another version's Unpack from removing it while this process lives. A
	// bare descriptor, because nothing may close it when a caller keeps the path alone.
	use int
}

// File gives the path of one of the set's files.
func (d Dir) File(name string) string { return filepath.Join(d.Path, name) }

// Close says that this process will start no more programs from the set. Not calling it is fine: exiting does the same.
func (d Dir) Close() error { return unix.Close(d.use) }

// forPeople is the file that a node does not need to start: kubectl, helm and ctr. It is most of the set.
const forPeople = "coracle-tools"

// Unpack puts the embedded programs below dataDir/bin, unless they are there, and removes sets of other versions that
// no process uses. Each file's checksum is checked on the way. The programs that a node needs appear all at once or not
// at all, and coracle-tools after them, also after a power cut, and when several processes unpack at once. Where the
// set is complete already nothing is written: then any user who may read the folder can call it.
func Unpack(dataDir string) (Dir, error) {
	d, rest, err := UnpackFirst(dataDir)
	if err != nil {
		return Dir{}, err
	}
	if err := rest(); err != nil {
		return Dir{}, errors.Join(err, d.Close())
	}
	return d, nil
}

// UnpackFirst is Unpack without coracle-tools, which rest adds, best when the node has started.
func UnpackFirst(dataDir string) (d Dir, rest func() error, err error) {
	sub, err := fs.Sub(embedded, embeddedRoot)
	if err != nil {
		return Dir{}, nil, fmt.Errorf("open the embedded programs: %w", err)
	}
	return unpack(sub, filepath.Join(dataDir, "bin"), "/proc")
}

func unpack(src fs.FS, bin, proc string) (d Dir, rest func() error, err error) {
	all, text, err := readIndex(src)
	if err != nil {
		return Dir{}, nil, err
	}
	var x, later index.Index
	for _, e := range all {
		if e.Path == forPeople {
			later = append(later, e)
		} else {
			x = append(x, e)
		}
	}
	d = Dir{Path: filepath.Join(bin, index.Hash(text)), Stable: filepath.Join(bin, "current")}
	for {
		if !complete(x, d.Path) || !pointsTo(d.Stable, d.Path) {
			if err := install(src, x, bin, d); err != nil {
				return Dir{}, nil, explain(err, bin, all.Bytes())
			}
		}
		held, err := d.hold()
		if err != nil {
			return Dir{}, nil, explain(err, bin, all.Bytes())
		}
		if held {
			break
		} // another version removed it just now: once more
	}
	// Clearing up is a courtesy: a set too many wastes space, a start that fails over it costs a node.
	_ = prune(bin, filepath.Base(d.Path), proc)
	return d, func() error {
		if err := add(src, later, bin, d.Path); err != nil {
			return explain(err, bin, later.Bytes())
		}
		return nil
	}, nil
}

// readIndex reads which files the set has, also as the text whose hash names the set.
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

// UnpackSome unpacks the files that want chooses by their paths, and what they are links to, into the new folder dir.
// It is for tests, which need a program or two; a node needs the whole set: Unpack.
func UnpackSome(dir string, want func(path string) bool) error {
	sub, err := fs.Sub(embedded, embeddedRoot)
	if err != nil {
		return fmt.Errorf("open the embedded programs: %w", err)
	}
	x, _, err := readIndex(sub)
	if err != nil {
		return err
	}
	linked := map[string]bool{}
	for _, e := range x {
		linked[e.Link] = linked[e.Link] || want(e.Path)
	}
	return write(sub, slices.DeleteFunc(x, func(e index.Entry) bool { return !want(e.Path) && !linked[e.Path] }), dir)
}

// ForNFT chooses the embedded nft for UnpackSome.
func ForNFT(path string) bool {
	return path == "nft" || filepath.Dir(path) == "nftables"
}

// hold takes the shared lock. It is false when what it locked is no longer what the path names.
func (d *Dir) hold() (bool, error) {
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
	d.use = fd
	return true, nil
}
