// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// A Log is Raft's log and its stable variables in one bbolt file. Everything
// stored has a checksum, which is verified on every read.
//
// An entry's data is followed by the CRC-32C, little endian, of its index,
// term, type, data and extensions. A variable is followed by that of its key
// and value.
//
// Writes do not return before they are on disk, or the Log's context ended.
type Log struct {
	path  string
	bolt  *raftboltdb.BoltStore
	space *space
	ctx   context.Context
	// written counts the bytes of entries appended, for the snapshot policy.
	written atomic.Int64
	grown   func(total int64)
}

var (
	_ raft.LogStore    = (*Log)(nil)
	_ raft.StableStore = (*Log)(nil)
)

const sumSize = 4

func entrySum(l *raft.Log, data []byte) uint32 {
	var h [17]byte
	binary.LittleEndian.PutUint64(h[:], l.Index)
	binary.LittleEndian.PutUint64(h[8:], l.Term)
	h[16] = byte(l.Type)
	sum := crc32.Checksum(h[:], castagnoli)
	sum = crc32.Update(sum, castagnoli, data)
	return crc32.Update(sum, castagnoli, l.Extensions)
}

// guard turns what bbolt does about a damaged page, a panic or a memory
// fault, into an error.
func (l *Log) guard(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			*err = damaged(l.path, "reading it failed: %v", p)
		}
	}
}

// FirstIndex returns the index of the oldest entry, 0 if there is none.
func (l *Log) FirstIndex() (index uint64, err error) {
	defer l.guard(&err)()
	return l.bolt.FirstIndex()
}

// LastIndex returns the index of the newest entry, 0 if there is none.
func (l *Log) LastIndex() (index uint64, err error) {
	defer l.guard(&err)()
	return l.bolt.LastIndex()
}

// GetLog reads an entry. It fails with a DamageError if it is not the one that
// was stored, and with raft.ErrLogNotFound if there is none.
func (l *Log) GetLog(index uint64, out *raft.Log) (err error) {
	defer l.guard(&err)()
	if err := l.bolt.GetLog(index, out); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
		return damaged(l.path, "log entry %d cannot be read: %v", index, err)
	}
	n := len(out.Data) - sumSize
	if n < 0 || out.Index != index || entrySum(out, out.Data[:n]) != binary.LittleEndian.Uint32(out.Data[n:]) {
		return damaged(l.path, "log entry %d has a wrong checksum", index)
	}
	out.Data = out.Data[:n:n]
	return nil
}

// StoreLog appends one entry.
func (l *Log) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs appends entries. While the disk is full or failing it waits.
func (l *Log) StoreLogs(entries []*raft.Log) error {
	sealed := make([]*raft.Log, len(entries))
	copies := make([]raft.Log, len(entries))
	var size int64
	for i, e := range entries {
		copies[i] = *e
		data := make([]byte, 0, len(e.Data)+sumSize)
		data = append(data, e.Data...)
		copies[i].Data = binary.LittleEndian.AppendUint32(data, entrySum(e, e.Data))
		sealed[i] = &copies[i]
		size += int64(len(e.Data))
	}
	err := l.space.persist(l.ctx, func() (err error) {
		defer l.guard(&err)()
		return l.bolt.StoreLogs(sealed)
	})
	if err != nil {
		return fmt.Errorf("append to %s: %w", l.path, err)
	}
	l.grown(l.written.Add(size))
	return nil
}

// DeleteRange removes entries, both ends included.
func (l *Log) DeleteRange(from, to uint64) error {
	err := l.space.persist(l.ctx, func() (err error) {
		defer l.guard(&err)()
		return l.bolt.DeleteRange(from, to)
	})
	if err != nil {
		return fmt.Errorf("shorten %s: %w", l.path, err)
	}
	return nil
}

// Set stores a variable. While the disk is full or failing it waits.
func (l *Log) Set(key, value []byte) error {
	sealed := append([]byte(nil), value...)
	sealed = binary.LittleEndian.AppendUint32(sealed, variableSum(key, value))
	err := l.space.persist(l.ctx, func() (err error) {
		defer l.guard(&err)()
		return l.bolt.Set(key, sealed)
	})
	if err != nil {
		return fmt.Errorf("write to %s: %w", l.path, err)
	}
	return nil
}

func variableSum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// Get reads a variable. Raft knows a missing one by the text of the error,
// which is raftboltdb.ErrKeyNotFound.
func (l *Log) Get(key []byte) (value []byte, err error) {
	defer l.guard(&err)()
	sealed, err := l.bolt.Get(key)
	if err != nil {
		return nil, err
	}
	return l.open(key, sealed)
}

// open verifies a variable's checksum and returns its value.
func (l *Log) open(key, sealed []byte) ([]byte, error) {
	n := len(sealed) - sumSize
	if n < 0 || variableSum(key, sealed[:n]) != binary.LittleEndian.Uint32(sealed[n:]) {
		return nil, damaged(l.path, "the variable %s has a wrong checksum", key)
	}
	return sealed[:n:n], nil
}

// SetUint64 stores a number.
func (l *Log) SetUint64(key []byte, n uint64) error {
	return l.Set(key, binary.BigEndian.AppendUint64(nil, n))
}

// GetUint64 reads a number.
func (l *Log) GetUint64(key []byte) (uint64, error) {
	value, err := l.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, damaged(l.path, "the variable %s is not a number", key)
	}
	return binary.BigEndian.Uint64(value), nil
}

// verify reads every entry once, and refuses gaps. It returns the first and
// last index.
func (l *Log) verify() (first, last uint64, err error) {
	if first, err = l.FirstIndex(); err != nil {
		return 0, 0, err
	}
	if last, err = l.LastIndex(); err != nil {
		return 0, 0, err
	}
	var size int64
	for i := first; i <= last && last > 0; i++ {
		var entry raft.Log
		if err := l.GetLog(i, &entry); errors.Is(err, raft.ErrLogNotFound) {
			return 0, 0, damaged(l.path, "log entry %d is missing", i)
		} else if err != nil {
			return 0, 0, err
		}
		size += int64(len(entry.Data))
	}
	l.written.Store(size)
	return first, last, nil
}

// variables are all that raft stores beside the log.
var variables = []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"}

// verifyVariables reads them, and looks for others, since a variable whose
// name is damaged would otherwise count as never set: a vote could be given
// twice. It returns how many there are.
func verifyVariables(path string) (found int, err error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", path, err)
	}
	defer db.Close()
	l := &Log{path: path}
	defer l.guard(&err)()
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("conf")).ForEach(func(k, v []byte) error {
			if !slices.Contains(variables, string(k)) {
				return damaged(path, "it holds a variable %q, which nobody wrote", k)
			}
			found++
			_, err := l.open(k, v)
			return err
		})
	})
	return found, err
}
