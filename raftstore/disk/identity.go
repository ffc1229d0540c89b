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

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/level"
)

// formatOf returns the number in the identity of a directory that has a level: that of the forms which its files may
// have. There was a format before the first level.
func formatOf(level int) int { return level + 1 }

const identityFile = "IDENTITY"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Identity names the cluster, the node and the member that a directory belongs to.
type Identity struct {
	Cluster string
	Node    string
	// Member is raft's name for the server: NODE.RANDOM, made with the directory. So a server that lost its disk, and
	// with it its votes, comes back as another member.
	Member string
}

// memberRandom is how many characters of rand.Text, of five bits each, distinguish a node's members.
const memberRandom = 10

// NodeOf returns the name of the node that a member belongs to.
func NodeOf(member string) string {
	dot := strings.LastIndexByte(member, '.')
	random := member[dot+1:]
	// The end of a node's own name is not taken for a random part: random parts are in capitals.
	if dot < 0 || len(random) != memberRandom || strings.Trim(random, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
		return member
	}
	return member[:dot]
}

// A FormatError says that the directory has a format that this version does not read: a newer version wrote it, or one
// that is too old.
type FormatError struct {
	Dir string
	// Version is the format, Oldest and Newest are those that this version reads.
	Version, Oldest, Newest int
}

func (e *FormatError) Error() string {
	if e.Version < e.Oldest {
		return fmt.Sprintf("the store's directory %s has format %d, and this version reads formats from %d on. Nothing was changed. "+
			"Run a version between the two first, and raise the level there with coracle upgrade raise", e.Dir, e.Version, e.Oldest)
	}
	return fmt.Sprintf("the store's directory %s has format %d, and this version reads formats up to %d. "+
		"Nothing was changed. Run the version that wrote it, or a newer one", e.Dir, e.Version, e.Newest)
}

// A MismatchError says that the directory belongs to another cluster, server or member.
type MismatchError struct {
	Dir, What, Has, Want string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("the store's directory %s belongs to %s %q, not to %q. "+
		"Nothing was changed. Give this server the directory that is its own, or an empty one", e.Dir, e.What, e.Has, e.Want)
}

// checkMatch refuses a directory of another cluster, server or member. Empty fields of want match any.
func (id Identity) checkMatch(dir string, want Identity) error {
	if want.Cluster != "" && want.Cluster != id.Cluster {
		return &MismatchError{dir, "cluster", id.Cluster, want.Cluster}
	}
	if want.Node != "" && want.Node != id.Node {
		return &MismatchError{dir, "server", id.Node, want.Node}
	}
	if want.Member != "" && want.Member != id.Member {
		return &MismatchError{dir, "member", id.Member, want.Member}
	}
	return nil
}

// withRandomNames sets random names in empty fields.
func (id Identity) withRandomNames() Identity {
	if id.Cluster == "" {
		id.Cluster = rand.Text()
	}
	if id.Node == "" {
		id.Node = rand.Text()
	}
	if id.Member == "" {
		id.Member = id.Node + "." + rand.Text()[:memberRandom]
	}
	return id
}

func (id Identity) encode(format int) []byte {
	return withSum(fmt.Sprintf("coracle store\nformat %d\ncluster %q\nnode %q\nmember %q\n", format, id.Cluster, id.Node, id.Member))
}

// withSum adds a last line with the checksum of the others.
func withSum(text string) []byte {
	return fmt.Appendf(nil, "%scrc32c %08x\n", text, crc32.Checksum([]byte(text), castagnoli))
}

// readIdentity returns the directory's identity and format, or fs.ErrNotExist if it has none. newest is the newest
// level that the program knows.
func readIdentity(dir string, newest int) (id Identity, version int, err error) {
	path := filepath.Join(dir, identityFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return id, 0, fmt.Errorf("read %s: %w", path, err)
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) < 2 || lines[0] != "coracle store" {
		return id, 0, newDamageError(path, "it does not start as it should")
	}
	// The format is read first: a newer format may differ in everything that follows.
	version, err = strconv.Atoi(strings.TrimPrefix(lines[1], "format "))
	if err != nil || version < 1 {
		return id, 0, newDamageError(path, "it has no format number")
	}
	if oldest := formatOf(level.OldestOf(newest)); version < oldest || version > formatOf(newest) {
		return id, version, &FormatError{Dir: dir, Version: version, Oldest: oldest, Newest: formatOf(newest)}
	}
	for i, field := range []struct {
		line string
		into *string
	}{{"cluster %q", &id.Cluster}, {"node %q", &id.Node}, {"member %q", &id.Member}} {
		if i+2 < len(lines) {
			_, scanErr := fmt.Sscanf(lines[i+2], field.line, field.into)
			err = errors.Join(err, scanErr)
		}
	}
	if err != nil || string(id.encode(version)) != string(data) {
		return id, version, newDamageError(path, "its checksum is wrong")
	}
	return id, version, nil
}

// ChangeMember gives the directory another member name, so that it can begin a new cluster: members of the old cluster
// do not know that name. "" chooses a random name.
func (d *Dir) ChangeMember(to string) error {
	id := d.Identity
	id.Member = to
	id = id.withRandomNames()
	if err := writeIdentity(d.path, id, d.Level()); err != nil {
		return err
	}
	d.Identity = id
	return nil
}

// Level returns the level of the forms that the directory's files may have.
func (d *Dir) Level() int { return int(d.level.Load()) }

// RecordLevel records, durably, that the directory's files may have the forms of a level, so that a version that cannot
// read them refuses the directory. A lower level than the present one changes nothing. On a full disk it uses the
// reserve.
func (d *Dir) RecordLevel(level int) error {
	if level <= d.Level() {
		return nil
	}
	err := writeIdentity(d.path, d.Identity, level)
	if err != nil {
		d.space.noteFailure(err)
		err = writeIdentity(d.path, d.Identity, level)
	}
	if err == nil {
		d.level.Store(int64(level))
	}
	return err
}

// Used says whether a directory holds a store.
func Used(dir string) (bool, error) { return exists(filepath.Join(dir, identityFile)) }

func writeIdentity(dir string, id Identity, level int) error {
	return writeFile(filepath.Join(dir, identityFile), id.encode(formatOf(level)))
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
		err = atomicfile.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Move renames a closed directory, durably.
func Move(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(to))
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("search for %s: %w", path, err)
	}
	return true, nil
}
