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

	"github.com/coracle-k8s/coracle/internal/boltcheck"
)

// Vars are raft's own variables (its term and its vote), in a bbolt file. Each value is followed by the CRC-32C, little
// endian, of its key and itself. All are read and verified when the directory is opened. Later reads are answered from
// memory: damage that occurs later is never served, and is found at the next start.
//
// A write returns when it is on disk, when the Dir is closed, or when the file turns out to be damaged.
type Vars struct {
	path  string
	bolt  *raftboltdb.BoltStore
	space *space
	stall *stall
	ctx   context.Context

	writing   sync.Mutex
	brokenErr error // set when bbolt has panicked and still holds its locks; guarded by writing
	// voteTerm is kept until the candidate that got the vote is stored. Guarded by writing.
	voteTerm []byte

	mu     sync.RWMutex // guards values; never held over a write
	values map[string][]byte
}

var _ raft.StableStore = (*Vars)(nil)

// variables are the names of all variables that raft stores.
var variables = []string{"CurrentTerm", voteTerm, voteCandidate}

const (
	voteTerm      = "LastVoteTerm"
	voteCandidate = "LastVoteCand"
)

const sumSize = 4

func openBolt(path string) (*raftboltdb.BoltStore, error) {
	return raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: time.Second,
			// The list of free pages is made from the whole file at a start, and not written with each change. That is
			// cheaper. It also keeps bbolt correct when a commit fails half way, since bbolt then makes the list again.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
}

// recoverDamage turns bbolt's reaction to a damaged page into an error: bbolt panics, or causes a memory fault.
func recoverDamage(path string, err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			*err = newDamageError(path, "reading it failed: %v", p)
		}
	}
}

// Set stores a variable. While the disk is full or failing it waits.
//
// Raft stores a vote as two variables: first its term, then the candidate. After a power cut between the two, the new
// term would be stored with the candidate of an earlier term. That candidate would then be granted a vote in the new
// term without a check of its log. So the term is kept back and written after the candidate. What a crash leaves then
// is a vote that was not given in the new term, and cannot be asked for in the old term any more.
func (v *Vars) Set(key, value []byte) error {
	v.writing.Lock()
	defer v.writing.Unlock()
	defer v.stall.beginWrite(&v.stall.vars)()
	switch string(key) {
	case voteTerm:
		v.voteTerm = slices.Clone(value)
		return nil
	case voteCandidate:
		err := v.set(key, value)
		if err == nil && v.voteTerm != nil {
			err = v.set([]byte(voteTerm), v.voteTerm)
		}
		v.voteTerm = nil
		return err
	}
	return v.set(key, value)
}

// set stores one variable. The caller holds writing.
func (v *Vars) set(key, value []byte) error {
	sealed := append([]byte(nil), value...)
	sealed = binary.LittleEndian.AppendUint32(sealed, variableSum(key, value))
	err := v.brokenErr
	if err == nil {
		err = v.space.persist(v.ctx, func() error { return v.write(key, sealed) })
	}
	if err != nil {
		return fmt.Errorf("write to %s: %w", v.path, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.values[string(key)] = sealed[:len(value):len(value)]
	return nil
}

func (v *Vars) write(key, sealed []byte) error {
	start := v.space.clock.Now()
	if err := v.space.faults.Strike(v.ctx, v.space.clock, false); err != nil {
		return err
	}
	var paniced error
	err := func() (err error) {
		defer recoverDamage(v.path, &paniced)()
		return v.bolt.Set(key, sealed)
	}()
	v.brokenErr = paniced
	if err = errors.Join(err, paniced); err == nil {
		v.stall.noteFlush(v.space.clock.Since(start))
	}
	return err
}

func variableSum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// Get reads a variable. If it is missing, the error is raftboltdb.ErrKeyNotFound, which raft recognizes by its text.
func (v *Vars) Get(key []byte) ([]byte, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	value, ok := v.values[string(key)]
	if !ok {
		return nil, raftboltdb.ErrKeyNotFound
	}
	return slices.Clone(value), nil
}

// close closes the file, unless bbolt has panicked and holds its locks for good.
func (v *Vars) close() error {
	v.writing.Lock()
	defer v.writing.Unlock()
	if v.brokenErr != nil {
		return v.brokenErr
	}
	return v.bolt.Close()
}

// openVariable verifies a variable's checksum and returns its value.
func openVariable(path string, key, sealed []byte) ([]byte, error) {
	n := len(sealed) - sumSize
	if n < 0 || variableSum(key, sealed[:n]) != binary.LittleEndian.Uint32(sealed[n:]) {
		return nil, newDamageError(path, "the variable %s has a wrong checksum", key)
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
		return 0, newDamageError(v.path, "the variable %s is not a number", key)
	}
	return binary.BigEndian.Uint64(value), nil
}

// savedVars is the content of the file.
type savedVars struct {
	values map[string][]byte
	term   uint64
}

// verifyVars checks the file and reads all variables. It changes nothing, while bbolt would as soon as it may. It also
// rejects unknown variables: a variable with a damaged name would count as never set, and a vote could be given twice.
func verifyVars(path string) (saved savedVars, err error) {
	if err := boltcheck.Check(path); err != nil {
		if damage, ok := errors.AsType[*boltcheck.Error](err); ok {
			err = newDamageError(path, "%s", damage.Detail)
		}
		return saved, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return saved, fmt.Errorf("open %s: %w", path, err)
	}
	defer recoverDamage(path, &err)()
	saved.values = make(map[string][]byte)
	check := func(k, sealed []byte) error {
		if !slices.Contains(variables, string(k)) {
			return newDamageError(path, "it holds a variable %q, which the store does not write", k)
		}
		value, err := openVariable(path, k, sealed)
		if err == nil && string(k) == variables[0] && len(value) == 8 {
			saved.term = binary.BigEndian.Uint64(value)
		}
		saved.values[string(k)] = slices.Clone(value)
		return err
	}
	err = db.View(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("conf")).ForEach(check) })
	return saved, errors.Join(err, db.Close())
}
