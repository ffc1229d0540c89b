// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"runtime"

	"github.com/hashicorp/raft"
)

// vars is the store of raft's variables that raft uses. Raft panics when it cannot save a term. The directory's store
// waits until it can. It fails only while the store is being closed and the disk is full or stalled. Closing must not
// end the process by that panic, so vars ends raft's goroutine instead, as closing has to do anyway.
type vars struct {
	raft.StableStore
	closing     context.Context
	replication replication
}

func (v vars) Set(key, value []byte) error { return v.unlessClosing(v.StableStore.Set(key, value)) }

func (v vars) SetUint64(key []byte, value uint64) error {
	if string(key) == "CurrentTerm" {
		v.replication.newTerm()
	}
	return v.unlessClosing(v.StableStore.SetUint64(key, value))
}

func (v vars) unlessClosing(err error) error {
	v.replication.setTimeouts() // raft reads the timeout for votes after a candidate has saved its own vote
	if err != nil && v.closing.Err() != nil {
		runtime.Goexit()
	}
	return err
}
