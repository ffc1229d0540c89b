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
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// Vars are raft's own variables (its term and its vote), in a bbolt file. Each
// value is followed by the CRC-32C, little endian, of its key and itself, which
// is verified on every read.
//
// Writes do not return before they are on disk, or the Dir is closed.
type Vars struct {
	path  string
	bolt  *raftboltdb.BoltStore
	space *space
	stall *stall
	ctx   context.Context

	writing sync.Mutex
}

var _ raft.StableStore = (*Vars)(nil)

// variables are the names of all that raft stores.
var variables = []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"}

const sumSize = 4

func openBolt(path string) (*raftboltdb.BoltStore, error) {
	return raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: time.Second,
			// The list of free pages is found by reading the file at start,
			// not written with each change. Besides being cheaper, that keeps
			// bbolt right when a commit fails half way: it looks again.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
}

// guard turns what bbolt does about a damaged page, a panic or a memory
// fault, into an error.
func guard(path string, err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			*err = damaged(path, "reading it failed: %v", p)
		}
	}
}

// Set stores a variable. While the disk is full or failing it waits.
func (v *Vars) Set(key, value []byte) error {
	sealed := append([]byte(nil), value...)
	sealed = binary.LittleEndian.AppendUint32(sealed, variableSum(key, value))
	v.writing.Lock()
	defer v.writing.Unlock()
	defer v.stall.begin(&v.stall.vars)()
	err := v.space.persist(v.ctx, func() (err error) {
		if err := v.space.faults.strike(v.ctx, v.space.clock); err != nil {
			return err
		}
		defer guard(v.path, &err)()
		return v.bolt.Set(key, sealed)
	})
	if err != nil {
		return fmt.Errorf("write to %s: %w", v.path, err)
	}
	return nil
}

func variableSum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// Get reads a variable. Raft knows a missing one by the text of the error,
// which is raftboltdb.ErrKeyNotFound.
func (v *Vars) Get(key []byte) (value []byte, err error) {
	defer guard(v.path, &err)()
	sealed, err := v.bolt.Get(key)
	if err != nil {
		return nil, err
	}
	return openVariable(v.path, key, sealed)
}

// openVariable verifies a variable's checksum and returns its value.
func openVariable(path string, key, sealed []byte) ([]byte, error) {
	n := len(sealed) - sumSize
	if n < 0 || variableSum(key, sealed[:n]) != binary.LittleEndian.Uint32(sealed[n:]) {
		return nil, damaged(path, "the variable %s has a wrong checksum", key)
	}
	return sealed[:n:n], nil
}

// SetUint64 stores a number.
func (v *Vars) SetUint64(key []byte, n uint64) error {
	return v.Set(key, binary.BigEndian.AppendUint64(nil, n))
}

// GetUint64 reads a number.
func (v *Vars) GetUint64(key []byte) (uint64, error) {
	value, err := v.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, damaged(v.path, "the variable %s is not a number", key)
	}
	return binary.BigEndian.Uint64(value), nil
}

// savedVars is what the file holds.
type savedVars struct {
	found int // variables
	term  uint64
}

// verifyVars checks the file without changing it, which bbolt would do as soon
// as it may, and reads all variables. It looks for unknown ones too, since a
// variable whose name is damaged would count as never set: a vote could be
// given twice.
func verifyVars(path string) (saved savedVars, err error) {
	if err := checkBolt(path); err != nil {
		return saved, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return saved, fmt.Errorf("open %s: %w", path, err)
	}
	defer guard(path, &err)()
	check := func(k, sealed []byte) error {
		if !slices.Contains(variables, string(k)) {
			return damaged(path, "it holds a variable %q, which nobody wrote", k)
		}
		saved.found++
		value, err := openVariable(path, k, sealed)
		if err == nil && string(k) == variables[0] && len(value) == 8 {
			saved.term = binary.BigEndian.Uint64(value)
		}
		return err
	}
	err = db.View(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("conf")).ForEach(check) })
	return saved, errors.Join(err, db.Close())
}
