// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"strings"
	"time"
)

// ServersPath is where a server's admin socket tells of the cluster's servers.
const ServersPath = "/v1/servers"

// Servers is what one server knows of all servers of the cluster.
type Servers struct {
	Servers []ClusterServer `json:"servers"`
	// Failures says in a sentence which failures of servers the cluster can still bear.
	Failures string `json:"failures"`
	// Problems are sentences about what is wrong, each with what to do.
	Problems []string `json:"problems"`
}

// Roles of a server in the store.
const (
	Leader   = "leader"
	Voter    = "voter"
	NonVoter = "non-voter"
)

// ClusterServer is one server of the cluster.
type ClusterServer struct {
	Name string `json:"name"` // of its node; its own if it has none
	// ID is its number in etcd's protocol, in hexadecimal, ServerID its name in the store.
	ID       string `json:"id"`
	ServerID string `json:"serverID"`
	Address  string `json:"address,omitempty"`
	Role     string `json:"role"`
	Self     bool   `json:"self,omitempty"`
	// Answers says that it answered just now.
	Answers bool      `json:"answers"`
	Heard   time.Time `json:"heard,omitzero"` // when it was last heard; not of this server itself
	// Lag is how many entries of the store's log it has yet to apply.
	Lag     uint64 `json:"lag"`
	Version string `json:"version,omitempty"`
	Full    bool   `json:"full,omitempty"` // its disk has no room
}

// Failures says which failures of servers a cluster can bear, in words, and what is wrong with its servers.
//
// A majority of the voters has to answer for the cluster to work; the other servers take the place of voters that are gone.
func Failures(servers []ClusterServer) (words string, problems []string) {
	voters, alive := 0, 0
	var leader string
	var silent []string
	for _, s := range servers {
		if !s.Answers {
			silent = append(silent, s.Name)
		}
		if s.Role == NonVoter {
			continue
		}
		voters++
		if s.Answers {
			alive++
		}
		if s.Role == Leader {
			leader = s.Name
		}
	}
	majority := voters/2 + 1
	spare := alive - majority
	if len(silent) > 0 {
		problem := fmt.Sprintf("%s: no answer at its address from this server. Is the machine on, does coracle run there, is the network in between whole?", listOf(silent))
		if alive >= majority { // without one nothing can be removed, and what helps is said below
			problem += " If it will not come back: coracle member remove NAME"
		}
		problems = append(problems, problem)
	}
	if leader == "" && alive >= majority {
		problems = append(problems, "the servers answer, but this one knows of no leader at this moment; that passes within a second or two. If it does not, they do not reach this one, or not one another: the line of its store may say why")
	}
	for _, s := range servers {
		if s.Full {
			problems = append(problems, fmt.Sprintf("%s: the disk of its store is full. Nothing is lost; make room", s.Name))
		}
	}
	switch {
	case voters == 0:
		return "not known yet: this server has not heard of any", problems
	case alive < majority:
		return "none: the cluster stands still. " + fmt.Sprintf("%d of %d voters answer, and %d are needed. Pods keep running and nothing is lost. Bring back one of the others; "+
			"if none will come back: coracle store recover", alive, voters, majority), problems
	case len(servers) == 1:
		return "none: this is the only server. With three the cluster survives the loss of one: coracle token print --server", problems
	case len(servers) == 2:
		return fmt.Sprintf("not that of %s, which alone has a vote. Add a third server and any one may fail: coracle token print --server", onlyVoter(servers)), problems
	case spare <= 0:
		return fmt.Sprintf("no further one: %d of %d voters answer, and %d are needed", alive, voters, majority), problems
	case spare == 1:
		return fmt.Sprintf("any one server%s", more(len(silent))), problems
	}
	return fmt.Sprintf("any %d servers at the same time%s", spare, more(len(silent))), problems
}

func onlyVoter(servers []ClusterServer) string {
	for _, s := range servers {
		if s.Role != NonVoter {
			return s.Name
		}
	}
	return ""
}

func more(silent int) string {
	if silent == 0 {
		return ""
	}
	return " more"
}

func listOf(names []string) string { return strings.Join(names, ", ") }
