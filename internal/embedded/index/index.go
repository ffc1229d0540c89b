// SPDX-License-Identifier: Apache-2.0

// Package index defines the table of contents of an embedded set. packaging/pack writes it when coracle is built, and
// internal/embedded reads it when it unpacks. The package knows only the text form and opens no files.
package index

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// FileName is the name of the index among the embedded files.
const FileName = "INDEX"

// Entry is one file or symbolic link of the set.
type Entry struct {
	// Path is relative to the set's folder, with forward slashes.
	Path string
	// Link is the target of a symbolic link; the fields below are then unused.
	Link string
	// Mode holds the permission bits.
	Mode fs.FileMode
	// Size is the length of the file in bytes, SHA256 its hash in hex.
	Size   int64
	SHA256 string
}

// Index lists a set in path order.
type Index []Entry

// Encode returns the text form. It has a line for each entry, so that a difference between two builds is readable.
func (x Index) Encode() []byte {
	var b strings.Builder
	for _, e := range x {
		if e.Link != "" {
			fmt.Fprintf(&b, "link %s %s\n", e.Link, e.Path)
			continue
		}
		fmt.Fprintf(&b, "file %04o %d %s %s\n", e.Mode.Perm(), e.Size, e.SHA256, e.Path)
	}
	return []byte(b.String())
}

// Bytes returns the sum of the lengths of the files.
func (x Index) Bytes() (n int64) {
	for _, e := range x {
		n += e.Size
	}
	return n
}

// Hash returns the name of a set: the hash of its text form, which holds every file's hash.
func Hash(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// Parse parses the text form. It rejects paths and links that lead out of the set's folder.
func Parse(text []byte) (Index, error) {
	var x Index
	s := bufio.NewScanner(strings.NewReader(string(text)))
	for n := 1; s.Scan(); n++ {
		e, err := parseLine(strings.Fields(s.Text()))
		if err != nil {
			return nil, fmt.Errorf("index of embedded files, line %d: %w", n, err)
		}
		x = append(x, e)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("index of embedded files: %w", err)
	}
	if len(x) == 0 {
		return nil, errors.New("index of embedded files: empty")
	}
	return x, nil
}

func parseLine(f []string) (Entry, error) {
	var e Entry
	switch {
	case len(f) == 3 && f[0] == "link":
		e = Entry{Link: f[1], Path: f[2]}
		if !fs.ValidPath(path.Join(path.Dir(e.Path), e.Link)) || path.IsAbs(e.Link) {
			return Entry{}, fmt.Errorf("link target %q leads out of the set", e.Link)
		}
	case len(f) == 5 && f[0] == "file":
		mode, err := strconv.ParseUint(f[1], 8, 9)
		if err != nil {
			return Entry{}, fmt.Errorf("mode: %w", err)
		}
		size, err := strconv.ParseUint(f[2], 10, 62)
		if err != nil {
			return Entry{}, fmt.Errorf("size: %w", err)
		}
		e = Entry{Mode: fs.FileMode(mode), Size: int64(size), SHA256: f[3], Path: f[4]}
	default:
		return Entry{}, fmt.Errorf("neither a file nor a link: %q", strings.Join(f, " "))
	}
	if !fs.ValidPath(e.Path) || e.Path == "." {
		return Entry{}, fmt.Errorf("path %q is not a path inside the set", e.Path)
	}
	return e, nil
}
