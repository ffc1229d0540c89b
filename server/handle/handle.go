// SPDX-License-Identifier: Apache-2.0

// Package handle gives the parts of a server its store and a client of its API from the start. Both exist only later:
// the store opens when the server runs, and the API server needs the store.
package handle

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/raftstore"
)

// Store is a server's store. The zero value is that of a store which is not open.
type Store struct {
	opened atomic.Pointer[raftstore.Store]
	ready  atomic.Bool
}

// SetOpened sets the store once it is open.
func (s *Store) SetOpened(store *raftstore.Store) { s.opened.Store(store) }

// SetReady records that the store has answered.
func (s *Store) SetReady() { s.ready.Store(true) }

// Opened returns the store, nil until it is open.
func (s *Store) Opened() *raftstore.Store { return s.opened.Load() }

// Ready returns the store, nil until it has answered.
func (s *Store) Ready() *raftstore.Store {
	if !s.ready.Load() {
		return nil
	}
	return s.opened.Load()
}

// Members returns the store's members, none until it is open.
func (s *Store) Members() []raftstore.Member { return membersOf(s.Opened()) }

// ReadyMembers returns the store's members, none until it has answered.
func (s *Store) ReadyMembers() []raftstore.Member { return membersOf(s.Ready()) }

func membersOf(store *raftstore.Store) []raftstore.Member {
	if store == nil {
		return nil
	}
	return store.Cluster().Members()
}

// BeginBackup begins a backup of the store.
func (s *Store) BeginBackup(ctx context.Context) (*raftstore.Backup, error) {
	if store := s.Ready(); store != nil {
		return store.BeginBackup(ctx)
	}
	return nil, errors.New("the store is not ready yet; coracle status says why")
}

// API is a client of a server's API. The zero value has none.
type API struct {
	client atomic.Pointer[kubernetes.Clientset]
}

// Begin makes the client. It is called when the API server serves.
func (a *API) Begin(config *rest.Config) error {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "joining"))
	if err != nil {
		return fmt.Errorf("making the client for machines that join: %w", err)
	}
	a.client.Store(client)
	return nil
}

// Client returns the client, or a refusal of a joining machine until the API server serves.
func (a *API) Client() (kubernetes.Interface, error) {
	if c := a.client.Load(); c != nil {
		return c, nil
	}
	return nil, protocol.Refuse(protocol.CodeStarting, "the server is starting; it admits machines once its API answers")
}
