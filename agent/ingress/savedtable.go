// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

const (
	// lastFormat is the version of the file's format. A file of another version is not used.
	lastFormat = 1
	// lastEvery is the shortest time between two writes of the file.
	lastEvery = 5 * time.Second
	// maxLast limits the file, in bytes. A table that compile has bounded is smaller.
	maxLast = 64 << 20
)

// savedTable is the table that the proxy serves by, as it is in the file. The file lets another proxy serve when the
// agent has restarted and no server answers. It holds keys, so it must be in memory: on a tmpfs, which a reboot
// empties.
type savedTable struct {
	Format int `json:"format"`
	// Cluster is Options.Cluster.
	Cluster string `json:"cluster"`
	// Ports and UDP are the ports that the kernel's table guards.
	Ports []int `json:"ports"`
	UDP   []int `json:"udp"`
	// Sections are the table with its endpoints.
	Sections table.Sections `json:"sections"`
}

func (l *savedTable) equal(other *savedTable) bool {
	return l.Cluster == other.Cluster && slices.Equal(l.Ports, other.Ports) && slices.Equal(l.UDP, other.UDP) &&
		maps.EqualFunc(l.Sections, other.Sections, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) })
}

// savedTableFile writes and removes the file. One goroutine calls its methods.
type savedTableFile struct {
	dir, cluster string
	log          *slog.Logger
	written      *savedTable // what the file has; nil for none of this run
	pending      *savedTable // what it does not have yet; nil for nothing
	nextWrite    time.Time   // of the next write
	loggedReason string      // the last logged reason for which there is no file
}

func lastPath(dir string) string { return filepath.Join(dir, "table") }

// save writes the table, unless the file has it already. It returns the time after which to call flush; 0 for never.
func (f *savedTableFile) save(l *savedTable) (again time.Duration) {
	l.Format, l.Cluster = lastFormat, f.cluster
	if f.written != nil && f.written.equal(l) {
		f.pending = nil
		return 0
	}
	f.pending = l
	if rest := time.Until(f.nextWrite); rest > 0 {
		return rest
	}
	f.flush()
	return 0
}

// flush writes what keep has put off. A file that cannot be written is logged once and removed, since it is outdated.
func (f *savedTableFile) flush() {
	if f.pending == nil {
		return
	}
	l := f.pending
	f.pending, f.nextWrite = nil, time.Now().Add(lastEvery)
	err := writeLast(f.dir, l)
	if err == nil {
		f.written, f.loggedReason = l, ""
		return
	}
	f.written = nil
	err = errors.Join(err, removeLast(f.dir))
	if text := err.Error(); text != f.loggedReason {
		f.loggedReason = text
		f.log.Info("ingress: the routing table is not kept for a restart of the agent while no server answers", "error", err)
	}
}

// forget removes the file, and what waits to be written to it.
func (f *savedTableFile) forget() {
	f.written, f.pending = nil, nil
	if err := removeLast(f.dir); err != nil {
		f.log.Warn("ingress: the kept routing table, which holds keys, could not be removed", "error", err)
	}
}

// writeLast replaces the file of the last table. The folder must be in memory.
func writeLast(dir string, l *savedTable) error {
	if err := inMemory(dir); err != nil {
		return err
	}
	text, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encoding the routing table: %w", err)
	}
	if len(text) > maxLast {
		return fmt.Errorf("the routing table has %d bytes, more than %d", len(text), maxLast)
	}
	return atomicfile.Write(lastPath(dir), withChecksum(text), 0o600)
}

// withChecksum returns the content of a file: a checksum in hexadecimal, a line break and the text.
func withChecksum(text []byte) []byte {
	sum := sha256.Sum256(text)
	return slices.Concat(hex.AppendEncode(nil, sum[:]), []byte("\n"), text)
}

// inMemory returns an error for a folder on a disk.
func inMemory(dir string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("finding out whether %s is in memory: %w", dir, err)
	}
	if s.Type != unix.TMPFS_MAGIC && s.Type != unix.RAMFS_MAGIC {
		return fmt.Errorf("%s is on no tmpfs, and the table's keys are never written to a disk: let --run-dir name a folder of a tmpfs", dir)
	}
	return nil
}

// readLast reads the file. It returns nil where there is none.
func readLast(dir, cluster string) (*savedTable, error) {
	text, err := os.ReadFile(lastPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // as said above
	}
	if err != nil {
		return nil, fmt.Errorf("reading the kept routing table: %w", err)
	}
	want, text, _ := bytes.Cut(text, []byte("\n"))
	l := &savedTable{}
	switch sum := sha256.Sum256(text); {
	case hex.EncodeToString(sum[:]) != string(want):
		return nil, errors.New("the kept routing table is damaged: its checksum is another one")
	case json.Unmarshal(text, l) != nil:
		return nil, errors.New("the kept routing table was written by another version of coracle")
	case l.Format != lastFormat:
		return nil, fmt.Errorf("the kept routing table was written by another version of coracle: its format is %d, and this version reads %d",
			l.Format, lastFormat)
	case l.Cluster != cluster:
		return nil, errors.New("the kept routing table is of another cluster")
	}
	return l, nil
}

// removeLast removes the file, and what an interrupted write has left.
func removeLast(dir string) error {
	paths, _ := filepath.Glob(filepath.Join(dir, ".table.tmp*")) // the pattern is well-formed
	for _, path := range append(paths, lastPath(dir)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the kept routing table: %w", err)
		}
	}
	return nil
}
