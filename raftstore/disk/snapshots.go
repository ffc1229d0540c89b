// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Snapshots keeps raft's snapshots, each in one file:
//
//	magic, header length, header CRC-32C, header (JSON), state,
//	state length (8 bytes), state CRC-32C
//
// Lengths and checksums are little endian, and four bytes unless stated otherwise. A snapshot gets its name only when
// it is complete and on disk. Then older snapshots are removed. If that fails, the next snapshot tries again.
type Snapshots struct {
	dir    string
	log    *slog.Logger
	strike func() error // the injected fault of a flush
	level  func() int   // of the directory
	// checkNewer returns an error if a snapshot may not be started. onComplete is called when a snapshot is complete.
	checkNewer, onComplete func(snapshotEnd) error
	unlink                 func(path string) error // os.Remove, except in tests
}

var _ raft.SnapshotStore = (*Snapshots)(nil)

const (
	snapshotMagic   = "coracle snapshot 1\n"
	snapshotSuffix  = ".snapshot"
	snapshotTrailer = 12
	maxHeader       = 1 << 20
)

// SnapshotVersion is raft's version of what is stored of a snapshot besides the state. It is not the library's newest,
// so that an update of the library changes nothing that an older server reads.
const SnapshotVersion raft.SnapshotVersion = 1

// snapshotHeader is what raft stores of a snapshot besides the state.
type snapshotHeader struct {
	Version            raft.SnapshotVersion
	Index, Term        uint64
	Configuration      raft.Configuration
	ConfigurationIndex uint64
}

func openSnapshots(dir string, log *slog.Logger) (*Snapshots, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, unusableError(dir, err)
	}
	fine := func(snapshotEnd) error { return nil }
	s := &Snapshots{dir: dir, log: log, strike: func() error { return nil }, checkNewer: fine, onComplete: fine, unlink: os.Remove}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") { // never completed
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("remove an unfinished snapshot: %w", err)
			}
		}
	}
	return s, nil
}

// ids lists the snapshots, the newest first. Names sort in the order of their indexes.
func (s *Snapshots) ids() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), snapshotSuffix); ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	return ids, nil
}

func snapshotID(index, term uint64) string { return fmt.Sprintf("%020d-%020d", index, term) }

func (s *Snapshots) path(id string) string { return filepath.Join(s.dir, id+snapshotSuffix) }

// verify reads every snapshot in full and returns the newest one's end.
func (s *Snapshots) verify() (newest snapshotEnd, err error) {
	ids, err := s.ids()
	if err != nil {
		return newest, err
	}
	for _, id := range ids {
		meta, f, err := s.open(id)
		if err != nil {
			return newest, err
		}
		_, err = io.Copy(io.Discard, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return newest, err
		}
		if meta.Index > newest.index {
			newest = endOf(meta)
		}
	}
	return newest, nil
}

func endOf(meta *raft.SnapshotMeta) snapshotEnd {
	return snapshotEnd{meta.Index, meta.Term, members{meta.ConfigurationIndex, meta.Configuration}}
}

// List returns the newest snapshot's description, if there is one.
func (s *Snapshots) List() ([]*raft.SnapshotMeta, error) {
	ids, err := s.ids()
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	meta, f, err := s.open(ids[0])
	if err != nil {
		return nil, err
	}
	return []*raft.SnapshotMeta{meta}, f.Close()
}

// Open returns a snapshot's description and its state. If the state is not what was written, the state's reader returns
// a DamageError instead of io.EOF.
func (s *Snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, f, err := s.open(id)
	if err != nil {
		return nil, nil, err // not a nil pointer in a non-nil interface
	}
	return meta, f, nil
}

func (s *Snapshots) open(id string) (*raft.SnapshotMeta, *snapshotReader, error) {
	path := s.path(id)
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open a snapshot: %w", err)
	}
	meta, r, err := readSnapshotHeader(path, f)
	if err == nil && id != snapshotID(meta.Index, meta.Term) {
		err = newDamageError(path, "it is a snapshot of another moment than its name says")
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	meta.ID = id
	return meta, r, nil
}

func readSnapshotHeader(path string, f *os.File) (*raft.SnapshotMeta, *snapshotReader, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("stat %s: %w", path, err)
	}
	start := make([]byte, len(snapshotMagic)+8)
	if _, err := io.ReadFull(f, start); err != nil {
		return nil, nil, newDamageError(path, "it is only %d bytes long", info.Size())
	}
	size := binary.LittleEndian.Uint32(start[len(snapshotMagic):])
	if string(start[:len(snapshotMagic)]) != snapshotMagic || size > maxHeader {
		return nil, nil, newDamageError(path, "it does not start as a snapshot does")
	}
	header := make([]byte, size)
	if _, err := io.ReadFull(f, header); err != nil {
		return nil, nil, newDamageError(path, "it is only %d bytes long", info.Size())
	}
	var h snapshotHeader
	if crc32.Checksum(header, castagnoli) != binary.LittleEndian.Uint32(start[len(snapshotMagic)+4:]) ||
		json.Unmarshal(header, &h) != nil {
		return nil, nil, newDamageError(path, "its header has a wrong checksum")
	}
	state := info.Size() - int64(len(start)) - int64(size) - snapshotTrailer
	if state < 0 {
		return nil, nil, newDamageError(path, "it is only %d bytes long", info.Size())
	}
	meta := &raft.SnapshotMeta{
		Version: h.Version, Index: h.Index, Term: h.Term,
		Configuration: h.Configuration, ConfigurationIndex: h.ConfigurationIndex, Size: state,
	}
	r := bufio.NewReaderSize(f, int(min(256<<10, state+snapshotTrailer)))
	return meta, &snapshotReader{path: path, f: f, r: r, remaining: state, size: state, sum: crc32.New(castagnoli)}, nil
}

// snapshotReader reads the state, and then checks the trailer behind it.
type snapshotReader struct {
	path      string
	f         *os.File
	r         *bufio.Reader
	remaining int64
	size      int64
	sum       hash.Hash32
}

func (r *snapshotReader) Read(p []byte) (int, error) {
	if r.remaining == 0 {
		return 0, r.checkEnd()
	}
	n, err := r.r.Read(p[:min(int64(len(p)), r.remaining)])
	r.remaining -= int64(n)
	r.sum.Write(p[:n])
	if errors.Is(err, io.EOF) {
		err = newDamageError(r.path, "it ends too early")
	}
	return n, err
}

// checkEnd returns io.EOF if the state is what was written, else a DamageError.
func (r *snapshotReader) checkEnd() error {
	var t [snapshotTrailer]byte
	if _, err := io.ReadFull(r.r, t[:]); err != nil {
		return newDamageError(r.path, "it ends too early")
	}
	r.r.Reset(strings.NewReader(string(t[:]))) // so that another Read gets the same result
	if binary.LittleEndian.Uint64(t[:]) != uint64(r.size) {
		return newDamageError(r.path, "its length is not what was written: it was truncated or overwritten")
	}
	if binary.LittleEndian.Uint32(t[8:]) != r.sum.Sum32() {
		return newDamageError(r.path, "its content has a wrong checksum")
	}
	return io.EOF
}

func (r *snapshotReader) Close() error { return r.f.Close() }

// Create starts a snapshot.
func (s *Snapshots) Create(version raft.SnapshotVersion, index, term uint64,
	configuration raft.Configuration, configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	end := endOf(&raft.SnapshotMeta{Index: index, Term: term, Configuration: configuration, ConfigurationIndex: configurationIndex})
	if err := s.checkNewer(end); err != nil {
		return nil, err
	}
	if err := checkForm(snapshotMagic, s.level()); err != nil {
		return nil, err
	}
	header, err := json.Marshal(snapshotHeader{version, index, term, configuration, configurationIndex})
	if err != nil {
		return nil, fmt.Errorf("describe a snapshot: %w", err)
	}
	id := snapshotID(index, term)
	// The file's name is unique: raft may write a snapshot here and receive the same one from a leader.
	f, err := os.CreateTemp(s.dir, id+".*.tmp")
	if err != nil {
		return nil, fmt.Errorf("create a snapshot: %w", err)
	}
	w := &snapshotWriter{store: s, id: id, end: end, f: f, w: bufio.NewWriterSize(f, 256<<10), sum: crc32.New(castagnoli)}
	start := binary.LittleEndian.AppendUint32([]byte(snapshotMagic), uint32(len(header)))
	start = binary.LittleEndian.AppendUint32(start, crc32.Checksum(header, castagnoli))
	if _, err := w.w.Write(append(start, header...)); err != nil {
		return nil, errors.Join(fmt.Errorf("create a snapshot: %w", err), w.Cancel())
	}
	return w, nil
}

type snapshotWriter struct {
	store *Snapshots
	id    string
	end   snapshotEnd
	f     *os.File
	w     *bufio.Writer
	size  uint64
	sum   hash.Hash32
	done  bool
}

func (w *snapshotWriter) ID() string { return w.id }

func (w *snapshotWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.sum.Write(p[:n])
	w.size += uint64(n)
	return n, err
}

// Close completes the snapshot. Raft may call it twice.
func (w *snapshotWriter) Close() error {
	if w.done {
		return nil
	}
	trailer := binary.LittleEndian.AppendUint64(nil, w.size)
	trailer = binary.LittleEndian.AppendUint32(trailer, w.sum.Sum32())
	_, err := w.w.Write(trailer)
	// While raft wrote this snapshot, a newer one may have arrived from the leader.
	if err = errors.Join(err, w.w.Flush(), w.store.strike(), w.f.Sync(), w.store.checkNewer(w.end)); err != nil {
		return errors.Join(fmt.Errorf("complete snapshot %s: %w", w.id, err), w.Cancel())
	}
	w.done = true
	err = errors.Join(w.f.Close(), os.Rename(w.f.Name(), w.store.path(w.id)), atomicfile.SyncDir(w.store.dir))
	if err == nil {
		err = w.store.onComplete(w.end)
	}
	if err != nil {
		return fmt.Errorf("complete snapshot %s: %w", w.id, err)
	}
	if err := w.store.removeOlder(w.id); err != nil { // raft must not get this error, since the snapshot is complete
		w.store.log.Warn("an older snapshot of the store could not be removed; the next snapshot tries again", "dir", w.store.dir, "err",
			err)
	}
	return nil
}

// Cancel drops the snapshot. Raft may call it after Close.
func (w *snapshotWriter) Cancel() error {
	if w.done {
		return nil
	}
	w.done = true
	return errors.Join(w.f.Close(), os.Remove(w.f.Name()))
}

func (s *Snapshots) removeOlder(than string) error {
	ids, err := s.ids()
	for _, id := range ids {
		if id < than {
			err = errors.Join(err, s.unlink(s.path(id)))
		}
	}
	return err
}
