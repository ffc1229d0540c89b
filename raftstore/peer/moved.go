// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"sync"

	"github.com/hashicorp/raft"
)

// moved knows of servers that are no longer at the address that raft has for them.
// Raft learns a new address by a change of members, which needs a leader: if most
// servers come back at other addresses, there would never be one. But a server's id
// is in each handshake, so a server that answers at some address, or says where it is when
// it asks for a vote, can be dialed there; the handshake there proves it again.
type moved struct {
	mu sync.Mutex
	// seen is where a server was met last, by its id.
	seen map[string]string
	// unreachable is raft's address at which it could not be reached last.
	unreachable map[string]string
}

// met notes that a server is at an address, or says so.
func (m *moved) met(id, address string) {
	if id == "" || address == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen == nil {
		m.seen, m.unreachable = make(map[string]string), make(map[string]string)
	}
	m.seen[id] = address
}

// where returns what to dial for raft's address of a server: that address, unless
// it failed and the server was met elsewhere.
func (m *moved) where(id, address string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if seen := m.seen[id]; seen != "" && m.unreachable[id] == address {
		return seen
	}
	return address
}

// dialed notes how dialing went that should reach a server.
func (m *moved) dialed(id, raftAddress, address string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.seen == nil:
	case address != raftAddress && err != nil: // it may be back
		delete(m.seen, id)
		delete(m.unreachable, id)
	case address == raftAddress && err != nil:
		m.unreachable[id] = raftAddress
	case address == raftAddress:
		delete(m.unreachable, id)
	}
}

// Where returns the address at which a server is dialed, given the one that raft
// has.
func (t *Transport) Where(id raft.ServerID, address raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(t.moved.where(string(id), string(address)))
}
