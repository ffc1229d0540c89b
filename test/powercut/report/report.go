// SPDX-License-Identifier: Apache-2.0

// Package report is what the guest of a power cut test tells its host, one line
// for each thing that happened. A line counts when its end has arrived. Every
// write is reported before it is sent and again when it was acknowledged.
//
// The package owns the lines and the values that are written; it knows nothing
// about stores.
package report

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Prefix precedes every key in the store.
const Prefix = "/powercut/"

// A Write is one request that changes something. Names say who sent it: a write
// is never sent twice.
type Write struct {
	Boot, Client, N int
	Puts            []Put
	Deletes         []string
	Grant, Revoke   int64 // leases; a revocation's Deletes are the lease's keys
	Compact         int64
}

// Put is one key of a write, without the prefix.
type Put struct {
	Key   string
	Lease int64
}

// Sent is the line for a write that is about to be sent.
func (w *Write) Sent() string {
	var b strings.Builder
	fmt.Fprintf(&b, "s %d %d", w.Client, w.N)
	for _, p := range w.Puts {
		fmt.Fprintf(&b, " +%s@%d", p.Key, p.Lease)
	}
	for _, key := range w.Deletes {
		fmt.Fprintf(&b, " -%s", key)
	}
	for _, n := range []struct {
		mark  byte
		value int64
	}{{'g', w.Grant}, {'r', w.Revoke}, {'c', w.Compact}} {
		if n.value != 0 {
			fmt.Fprintf(&b, " %c%d", n.mark, n.value)
		}
	}
	return b.String()
}

// ParseSent reads what Sent made, without its first word.
func ParseSent(boot int, line string) (*Write, error) {
	words := strings.Fields(line)
	if len(words) < 3 {
		return nil, fmt.Errorf("a write without content: %q", line)
	}
	w := &Write{Boot: boot}
	var errs [3]error
	w.Client, errs[0] = strconv.Atoi(words[0])
	w.N, errs[1] = strconv.Atoi(words[1])
	for _, word := range words[2:] {
		rest := word[1:]
		switch word[0] {
		case '+':
			key, lease, _ := strings.Cut(rest, "@")
			var id int64
			id, errs[2] = strconv.ParseInt(lease, 10, 64)
			w.Puts = append(w.Puts, Put{key, id})
		case '-':
			w.Deletes = append(w.Deletes, rest)
		case 'g':
			w.Grant, errs[2] = strconv.ParseInt(rest, 10, 64)
		case 'r':
			w.Revoke, errs[2] = strconv.ParseInt(rest, 10, 64)
		case 'c':
			w.Compact, errs[2] = strconv.ParseInt(rest, 10, 64)
		default:
			return nil, fmt.Errorf("unknown word %q in %q", word, line)
		}
	}
	for _, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("in %q: %w", line, err)
		}
	}
	return w, nil
}

// Name is the write's.
func (w *Write) Name() string { return fmt.Sprintf("%d.%d.%d", w.Boot, w.Client, w.N) }

// Value is what a write puts at a key: the write's name, then bytes that depend
// on it and on the key. Those of every 16th
// client are large, to fill the log.
func (w *Write) Value(key string) []byte {
	name := w.Name()
	r := rand.New(rand.NewPCG(uint64(crc32.ChecksumIEEE([]byte(name))), uint64(crc32.ChecksumIEEE([]byte(key)))))
	size := 1024 + r.IntN(64)
	if w.Client%16 == 0 {
		size = 32<<10 + r.IntN(128<<10)
	}
	value := make([]byte, size)
	for i := copy(value, name+" "); i < size; i++ {
		value[i] = byte(r.Uint32())
	}
	return value
}

// Writer is the name of the write that made a value.
func Writer(value []byte) string {
	name, _, _ := strings.Cut(string(value[:min(len(value), 64)]), " ")
	return name
}

// Version is a key at some revision, as the guest found it.
type Version struct {
	Revision int64
	Key      string // without the prefix
	Deleted  bool
	Create   int64
	Count    int64 // etcd's version
	Lease    int64
	Writer   string
	Sum      uint32 // CRC-32 of the value
}

// String is a line, without its first word.
func (v Version) String() string {
	if v.Deleted {
		return fmt.Sprintf("%d -%s", v.Revision, v.Key)
	}
	return fmt.Sprintf("%d +%s %d %d %d %s %08x", v.Revision, v.Key, v.Create, v.Count, v.Lease, v.Writer, v.Sum)
}

// ParseVersion reads what String made.
func ParseVersion(line string) (Version, error) {
	var v Version
	revision, rest, _ := strings.Cut(line, " ")
	var err error
	if v.Revision, err = strconv.ParseInt(revision, 10, 64); err != nil || rest == "" {
		return v, fmt.Errorf("no version: %q", line)
	}
	if v.Key, v.Deleted = strings.CutPrefix(rest, "-"); v.Deleted {
		return v, nil
	}
	_, err = fmt.Sscanf(rest[1:], "%s %d %d %d %s %x", &v.Key, &v.Create, &v.Count, &v.Lease, &v.Writer, &v.Sum)
	if err != nil {
		return v, fmt.Errorf("in %q: %w", line, err)
	}
	return v, nil
}
