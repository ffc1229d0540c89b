// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/level"
)

// A snapshot's file is
//
//	"coracle snapshot\n"
//	header      one line of JSON, not encrypted
//	body        encrypted in the form of age (age-encryption.org/v1)
//	checksum    SHA-256 of everything before it, 32 bytes
//
// The decrypted body is
//
//	length, header       the same line, so that a changed header is noticed
//	length, contents     JSON
//	state                the input of raftstore.Restore
//
// Lengths are four bytes, big-endian.
const magic = "coracle snapshot\n"

// Format is the version of that form. It is raised when an older program would misread what a newer one writes.
const Format = 1

const (
	maxHeader   = 64 << 10
	maxContents = 16 << 20
)

// Header is the part that can be read without a key.
type Header struct {
	Format int `json:"format"`
	// Cluster is the hash of the cluster's authority, as in tokens.
	Cluster string `json:"cluster"`
	// Server is the name of the server that wrote the file. Version is the version of its program.
	Server  string    `json:"server"`
	Version string    `json:"version"`
	Time    time.Time `json:"time"`
	// Level is the cluster's level. It is 0 for level.First.
	Level int `json:"level,omitempty"`
	// Revision is the store's revision. Keys is the number of keys in the store.
	Revision int64 `json:"revision"`
	Keys     int64 `json:"keys"`
	// Content is a hash of everything that a user would miss. Two snapshots with equal hashes contain the same data in
	// that sense.
	Content string `json:"content"`
	// Scheduled says that the schedule took the snapshot.
	Scheduled bool `json:"scheduled,omitempty"`
	// Key says which kind of key decrypts the snapshot.
	Key KeyKind `json:"key"`
}

// Contents is the data of the cluster outside its store.
type Contents struct {
	// Files maps paths below the server's folder to contents.
	Files map[string][]byte `json:"files"`
	// Accepted is which bundles the server's machine has taken. It is nil in snapshots of before there were bundles,
	// and versions of that time ignore it.
	Accepted *bundle.Accepted `json:"bundles,omitempty"`
}

// Equal says whether c and d have the same files. What else they have may be of another moment than the store.
func (c Contents) Equal(d Contents) bool {
	return maps.EqualFunc(c.Files, d.Files, bytes.Equal)
}

var (
	// ErrNoSnapshot says that a file is not a snapshot.
	ErrNoSnapshot = errors.New("it is no snapshot of coracle")
	// ErrDamaged says that a file has changed since it was written.
	ErrDamaged = errors.New("it is damaged")
	// errUnreadable says that a file cannot be read, so that it is unknown whether it is a snapshot.
	errUnreadable = errors.New("it cannot be read")
)

// write writes a snapshot to w. It calls state to write the store's state.
func write(w io.Writer, h Header, key Key, c Contents, state func(io.Writer) error) error {
	h.Format, h.Key = Format, key.Kind
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	contents, err := json.Marshal(c)
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	if _, err := fmt.Fprintf(out, "%s%s\n", magic, line); err != nil {
		return err
	}
	body, err := key.encrypt(out)
	if err != nil {
		return err
	}
	for _, section := range [][]byte{line, contents} {
		if _, err := body.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(section))), section...)); err != nil {
			return err
		}
	}
	if err := state(body); err != nil {
		return err
	}
	if err := body.Close(); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

// readHeader reads everything before the body. It also returns the header's line.
func readHeader(r *bufio.Reader) (h Header, line []byte, err error) {
	start := make([]byte, len(magic))
	if _, err := io.ReadFull(r, start); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return h, nil, fmt.Errorf("%w: %w", errUnreadable, err) // it may be a snapshot on a failing disk
	} else if err != nil || string(start) != magic {
		return h, nil, ErrNoSnapshot
	}
	for len(line) == 0 || line[len(line)-1] != '\n' {
		b, err := r.ReadByte()
		if err != nil && !errors.Is(err, io.EOF) {
			return h, nil, fmt.Errorf("%w: %w", errUnreadable, err)
		}
		if err != nil || len(line) == maxHeader {
			return h, nil, fmt.Errorf("%w: its header has no end", ErrDamaged)
		}
		line = append(line, b)
	}
	line = line[:len(line)-1]
	if err := json.Unmarshal(line, &h); err != nil || h.Format < 1 {
		return h, nil, fmt.Errorf("%w: its header cannot be read", ErrDamaged)
	}
	if h.Format > Format {
		return h, line, fmt.Errorf("it was written by a newer coracle: %s, format %d, and this one knows formats up to %d. Use %s or newer",
			h.Version, h.Format, Format, h.Version)
	}
	if h.Level > level.Newest() {
		return h, line, fmt.Errorf("it is of a cluster of level %d, which was written by coracle %s, and this one knows levels up to %d. "+
			"Use %s or newer", h.Level, h.Version, level.Newest(), h.Version)
	}
	return h, line, nil
}

// checkSum reads a whole snapshot and compares its checksum, which needs no key.
func checkSum(r io.Reader, size int64) (Header, error) {
	sum := sha256.New()
	in := bufio.NewReader(io.TeeReader(io.LimitReader(r, size-sha256.Size), sum))
	h, _, err := readHeader(in)
	if err != nil {
		return h, err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return h, err
	}
	want := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r, want); err != nil {
		return h, fmt.Errorf("%w: its end is missing", ErrDamaged)
	}
	if !bytes.Equal(want, sum.Sum(nil)) {
		return h, fmt.Errorf("%w: its checksum is wrong", ErrDamaged)
	}
	return h, nil
}

// open decrypts a snapshot. The reader state returns the store's state. Only when it was read to its end is all of it
// verified.
func open(r io.Reader, size int64, key Key) (h Header, c Contents, state io.Reader, err error) {
	in := bufio.NewReader(io.LimitReader(r, size-sha256.Size))
	h, line, err := readHeader(in)
	if err != nil {
		return h, c, nil, err
	}
	body, err := key.decrypt(in, h)
	if err != nil {
		return h, c, nil, err
	}
	inside, err := readSection(body, maxHeader)
	if err != nil {
		return h, c, nil, err
	}
	if !bytes.Equal(inside, line) {
		return h, c, nil, fmt.Errorf("%w: its header was changed", ErrDamaged)
	}
	contents, err := readSection(body, maxContents)
	if err != nil {
		return h, c, nil, err
	}
	if err := json.Unmarshal(contents, &c); err != nil {
		return h, c, nil, fmt.Errorf("its contents cannot be read: %w", err)
	}
	return h, c, body, nil
}

func readSection(r io.Reader, limit uint32) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > limit {
		return nil, fmt.Errorf("%w: a section of it has %d bytes", ErrDamaged, n)
	}
	var section bytes.Buffer // grows only as far as there is data
	if _, err := io.CopyN(&section, r, int64(n)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return section.Bytes(), nil
}

func isName(name string) bool { return checkName(name) == nil }

// checkName refuses names that leave the folder, and hidden ones.
func checkName(name string) error {
	if name == "" || len(name) > 200 || strings.HasPrefix(name, ".") || strings.ContainsFunc(name, func(r rune) bool {
		return r != '-' && r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return fmt.Errorf("%q cannot be the name of a snapshot: letters, digits, '-', '_' and '.' can be in it, and no '.' at its start",
			name)
	}
	return nil
}
