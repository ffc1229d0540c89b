// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"net/netip"
	"time"

	"github.com/coracle-k8s/coracle/raftstore"
)

const (
	// unresponsiveAfter is how long after its last contact a server remains an endpoint of the kubernetes Service. A
	// server that is alive answers heartbeats several times in a tenth of that. Together with the time to notice and
	// write the change it stays below three seconds.
	unresponsiveAfter = 2 * time.Second
	// newLeaderWaits is how long a new leader counts every server as alive. It has had contact only with those that it
	// needed for its election.
	newLeaderWaits = time.Second
)

// LiveServers determines the endpoints of the kubernetes Service on the leader, and the addresses of servers without
// contact: nodes have to know these, too, and no other machine may take them. Addresses has to be called repeatedly.
type LiveServers struct {
	leading time.Time // since when this server leads, by the calls of Addresses; zero if it does not
	term    uint64    // the term in which it leads
}

// Addresses returns the addresses of live servers and of those without contact. It returns nothing unless this server
// leads. The term has to be read before the members.
func (l *LiveServers) Addresses(term uint64, members []raftstore.Member, now time.Time) (live, unheard []netip.AddrPort) {
	leads := false
	for _, m := range members {
		leads = leads || m.Self && m.Leader
	}
	if !leads {
		l.leading = time.Time{}
		return nil, nil
	}
	if l.leading.IsZero() || l.term != term { // a new term: it lost the leadership and was elected again between two calls
		l.leading, l.term = now, term
	}
	for _, m := range members {
		at, err := netip.ParseAddrPort(m.Address)
		if err != nil {
			continue
		}
		at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		if !m.Self && now.Sub(m.Contact) > unresponsiveAfter && now.Sub(l.leading) > newLeaderWaits {
			unheard = append(unheard, at)
		} else {
			live = append(live, at)
		}
	}
	return live, unheard
}
