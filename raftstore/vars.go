// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"runtime"

	"github.com/hashicorp/raft"
)

// vars are raft's variables, for raft. Raft panics when it cannot save a term.
// Ours waits until it can, but not when the store is being closed: then, with
// a disk that is full or stalled, it fails. Closing must not end the process, so
// the goroutine ends instead, which is what closing wants of it.
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
	v.replication.setTimers() // a candidate looks how long to wait for votes when it has saved its own
	if err != nil && v.closing.Err() != nil {
		runtime.Goexit()
	}
	return err
}
