// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"net/netip"
	"time"

	"github.com/coracle-k8s/coracle/raftstore"
)

const (
	// unresponsive is how long a server may not have been heard and still stands behind the kubernetes Service. One
	// that is alive answers heartbeats several times in a tenth of that; together with the time of looking and writing
	// it stays below three seconds.
	unresponsive = 2 * time.Second
	// newLeaderWaits is how long a new leader counts every server as alive. It has heard only those that it needed for
	// its election.
	newLeaderWaits = time.Second
)

// LiveServers are the addresses behind the kubernetes Service, as the leader knows them, and those of the servers that
// it does not hear: nodes have to know these, too, and no other machine may take them. It is asked again and again.
type LiveServers struct {
	leading time.Time // since when; zero on a server that does not lead
	term    uint64    // in which
}

// Addresses returns nothing unless this server leads. The term has to be read before the members.
func (l *LiveServers) Addresses(term uint64, members []raftstore.Member, now time.Time) (live, unheard []netip.AddrPort) {
	leads := false
	for _, m := range members {
		leads = leads || m.Self && m.Leader
	}
	if !leads {
		l.leading = time.Time{}
		return nil, nil
	}
	if l.leading.IsZero() || l.term != term { // it may have lost an election and won the next one since the last look
		l.leading, l.term = now, term
	}
	for _, m := range members {
		at, err := netip.ParseAddrPort(m.Address)
		if err != nil {
			continue
		}
		at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		if !m.Self && now.Sub(m.Contact) > unresponsive && now.Sub(l.leading) > newLeaderWaits {
			unheard = append(unheard, at)
		} else {
			live = append(live, at)
		}
	}
	return live, unheard
}
