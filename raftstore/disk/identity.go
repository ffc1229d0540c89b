// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// FormatVersion is the version of the directory's layout and of every file in
// it. A directory with a greater one is refused.
const FormatVersion = 1

const identityFile = "IDENTITY"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Identity is what a directory is part of. It is written once.
type Identity struct {
	Cluster string
	Node    string
}

// A FormatError says that a newer version of the program wrote the directory.
type FormatError struct {
	Dir     string
	Version int
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("the store's directory %s has format %d, and this version reads formats up to %d. "+
		"Nothing was changed. Run the version that wrote it, or a newer one", e.Dir, e.Version, FormatVersion)
}

// A MismatchError says that the directory belongs to something else.
type MismatchError struct {
	Dir, What, Has, Want string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("the store's directory %s belongs to %s %q, not to %q. "+
		"Nothing was changed. Give this server the directory that is its own, or an empty one", e.Dir, e.What, e.Has, e.Want)
}

// match refuses a directory of another cluster or server. Empty wishes match.
func (id Identity) match(dir string, want Identity) error {
	if want.Cluster != "" && want.Cluster != id.Cluster {
		return &MismatchError{dir, "cluster", id.Cluster, want.Cluster}
	}
	if want.Node != "" && want.Node != id.Node {
		return &MismatchError{dir, "server", id.Node, want.Node}
	}
	return nil
}

// fill chooses random names for what is not given.
func (id Identity) fill() Identity {
	if id.Cluster == "" {
		id.Cluster = rand.Text()
	}
	if id.Node == "" {
		id.Node = rand.Text()
	}
	return id
}

func (id Identity) encode() []byte {
	text := fmt.Sprintf("coracle store\nformat %d\ncluster %q\nnode %q\n", FormatVersion, id.Cluster, id.Node)
	return fmt.Appendf(nil, "%scrc32c %08x\n", text, crc32.Checksum([]byte(text), castagnoli))
}

// readIdentity returns fs.ErrNotExist if there is none.
func readIdentity(dir string) (Identity, error) {
	path := filepath.Join(dir, identityFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return Identity{}, fmt.Errorf("read %s: %w", path, err)
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) < 2 || lines[0] != "coracle store" {
		return Identity{}, damaged(path, "it does not start as it should")
	}
	// The format first: a newer one may differ in everything that follows.
	version, err := strconv.Atoi(strings.TrimPrefix(lines[1], "format "))
	if err != nil {
		return Identity{}, damaged(path, "it has no format number")
	}
	if version > FormatVersion {
		return Identity{}, &FormatError{Dir: dir, Version: version}
	}
	var id Identity
	if len(lines) > 3 {
		_, err1 := fmt.Sscanf(lines[2], "cluster %q", &id.Cluster)
		_, err2 := fmt.Sscanf(lines[3], "node %q", &id.Node)
		err = errors.Join(err1, err2)
	}
	if err != nil || string(id.encode()) != string(data) {
		return Identity{}, damaged(path, "its checksum is wrong")
	}
	return id, nil
}

func writeIdentity(dir string, id Identity) error {
	return writeFile(filepath.Join(dir, identityFile), id.encode())
}

// writeFile replaces a file by one with the given content, durably.
func writeFile(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", path, err)
	}
	return true, nil
}
