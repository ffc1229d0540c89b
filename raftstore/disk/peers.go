// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

const peersFile = "PEERS"

// A Peer is another server of the cluster, with its last known address.
type Peer struct {
	ID      string // its member name
	Address string
}

// SavePeers notes the other servers' addresses, for a start at which the rest of the directory turns out to be damaged.
// It writes only when they have changed. After an error the older note is still there, if there was one.
func (d *Dir) SavePeers(peers []Peer) error {
	d.peers.Lock()
	defer d.peers.Unlock()
	if d.peers.known && slices.Equal(peers, d.peers.saved) {
		return nil
	}
	if err := writeFile(filepath.Join(d.path, peersFile), encodePeers(peers)); err != nil {
		return err
	}
	d.peers.saved, d.peers.known = slices.Clone(peers), true
	return nil
}

// ReadPeers returns the note that SavePeers wrote to a directory, opened or not, and nothing if there is no note. An
// error should not prevent a start: the caller should log it and continue without a note.
func ReadPeers(dir string) ([]Peer, error) {
	path := filepath.Join(dir, peersFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var peers []Peer
	for line := range strings.Lines(string(data)) {
		var p Peer
		if n, err := fmt.Sscanf(line, "peer %q %q\n", &p.ID, &p.Address); err == nil && n == 2 {
			peers = append(peers, p)
		}
	}
	if string(encodePeers(peers)) != string(data) {
		return nil, fmt.Errorf("read %s: its checksum is wrong. The file is ignored, and is written again once the other servers are known", path)
	}
	return peers, nil
}

// joiningFile says that the directory was made to join others, and that this server is not known to be a member yet.
const joiningFile = "JOINING"

// Joining says whether the directory was made to join others and still has the note of StartJoining. Then it must not
// begin a cluster, and its server may ask to join.
func (d *Dir) Joining() (bool, error) { return exists(filepath.Join(d.path, joiningFile)) }

// StartJoining notes that the directory is to join others, and their addresses.
func (d *Dir) StartJoining(peers []Peer) error {
	if err := d.SavePeers(peers); err != nil {
		return err
	}
	return writeFile(filepath.Join(d.path, joiningFile), nil)
}

// Joined removes the note of StartJoining.
func (d *Dir) Joined() error {
	if err := os.Remove(filepath.Join(d.path, joiningFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record that this server is joining: %w", err)
	}
	return atomicfile.SyncDir(d.path)
}

func encodePeers(peers []Peer) []byte {
	var text strings.Builder
	text.WriteString("coracle peers\n")
	for _, p := range peers {
		fmt.Fprintf(&text, "peer %q %q\n", p.ID, p.Address)
	}
	return withSum(text.String())
}
