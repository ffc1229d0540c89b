// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"sync"

	"github.com/hashicorp/raft"
)

// movedServers knows the servers that are no longer at the address that raft has for them. Raft learns a new address by
// a change of members, which needs a leader. If most servers come back at other addresses, there would never be a
// leader. But each handshake has the id of a server. So a server that answers at another address, or gives its address
// when it asks for a vote, is dialed there. The handshake proves its id again.
type movedServers struct {
	mu sync.Mutex
	// foundAt is the address at which a server was met last, by server id.
	foundAt map[string]string
	// unreachable is raft's address of a server, by server id, if the last attempt to connect there failed.
	unreachable map[string]string
}

// recordAddress records the address at which a server was met, or which the server says that it has.
func (m *movedServers) recordAddress(id, address string) {
	if id == "" || address == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.foundAt == nil {
		m.foundAt, m.unreachable = make(map[string]string), make(map[string]string)
	}
	m.foundAt[id] = address
}

// dialAddress returns the address to dial for a server that raft has at address. It is that address, unless connecting
// there failed and the server was met at another one.
func (m *movedServers) dialAddress(id, address string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if seen := m.foundAt[id]; seen != "" && m.unreachable[id] == address {
		return seen
	}
	return address
}

// recordDial notes the outcome of an attempt to connect to a server.
func (m *movedServers) recordDial(id, raftAddress, address string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.foundAt == nil:
	case address != raftAddress && err != nil: // it may be at raft's address again
		delete(m.foundAt, id)
		delete(m.unreachable, id)
	case address == raftAddress && err != nil:
		m.unreachable[id] = raftAddress
	case address == raftAddress:
		delete(m.unreachable, id)
	}
}

// Where returns the address at which a server is dialed. a is the one that raft has.
func (cs *connections) Where(id raft.ServerID, address raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(cs.movedServers.dialAddress(string(id), string(address)))
}
