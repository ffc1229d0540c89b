// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// ServersPath is where a server's admin socket tells of the cluster's servers.
const ServersPath = "/v1/servers"

// ClusterPath is where the API of a server shows the cluster's servers and its own components, to a client that has the
// ClusterRole clusterconfig.StatusRole. It is a ServerReport in JSON.
const ClusterPath = "/coracle/status"

// ServerReport is what a server says of the cluster and of itself to users of the API.
type ServerReport struct {
	Servers
	// Components are those of the server that was asked.
	Components []Component `json:"components"`
	// Store and Snapshots are what that server has of them; Snapshots is nil where it has none and takes none.
	Store     *StoreSize `json:"store,omitempty"`
	Snapshots *Snapshots `json:"snapshots,omitempty"`
	// VirtualIPs are the cluster's virtual addresses, for which the leader answers. NetworkBackend is how its nodes
	// reach each other's pods; empty where another plugin sees to that.
	VirtualIPs     []string `json:"virtualIPs,omitempty"`
	NetworkBackend string   `json:"networkBackend,omitempty"`
}

// StoreSize is how much the store holds, in bytes.
type StoreSize struct {
	Live  int64 `json:"live"`            // the keys and values that there are
	Total int64 `json:"total"`           // with those of history
	Quota int64 `json:"quota,omitempty"` // from which on writes are refused; 0 for none
}

// Snapshots are those of one server.
type Snapshots struct {
	Count int `json:"count"` // on its machine
	// Last is when the newest was taken, LastSize its size in bytes.
	Last     time.Time `json:"last,omitzero"`
	LastSize int64     `json:"lastSize,omitempty"`
	// Failures counts the scheduled ones that failed since the server was started.
	Failures int64 `json:"failures"`
	// Scheduled says that it takes them by a schedule.
	Scheduled bool `json:"scheduled"`
}

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
	Lag uint64 `json:"lag"`
	// ReachedBy are the other servers that reach it when it does not answer this one.
	ReachedBy []string `json:"reachedBy,omitempty"`
	Version   string   `json:"version,omitempty"`
	Full      bool     `json:"full,omitempty"` // its disk has no room
	// Stalled says that its disk does not finish a write: the server answers, and counts for no majority.
	Stalled bool `json:"stalled,omitempty"`
}

// Failures says which failures of servers a cluster can bear, in words, and what is wrong with its servers.
//
// A majority of the voters has to store for the cluster to work, not only to answer; the other servers take the place
// of voters that do not.
func Failures(servers []ClusterServer) (words string, problems []string) {
	servers, problems = countReachedByOthers(servers)
	voters, alive := 0, 0
	var leader string
	var silent, stalled []string
	for _, s := range servers {
		switch {
		case !s.Answers:
			silent = append(silent, s.Name)
		case s.Stalled:
			stalled = append(stalled, s.Name)
		}
		if s.Role == NonVoter {
			continue
		}
		voters++
		if s.Answers && !s.Stalled {
			alive++
		}
		if s.Role == Leader {
			leader = s.Name
		}
	}
	majority := voters/2 + 1
	spare := alive - majority
	if len(silent) > 0 {
		problem := fmt.Sprintf("%s: no answer at its address from this server. Is the machine on, does coracle run there, is the network "+
			"in between whole?", listOf(silent))
		if alive >= majority { // without one nothing can be removed, and what helps is said below
			problem += " If it will not come back: coracle member remove NAME"
		}
		problems = append(problems, problem)
	}
	if len(stalled) > 0 {
		problem := fmt.Sprintf("%s: the disk of its store does not finish a write, so it answers and counts for no majority. "+
			"Nothing is lost, and its pods run. Check the disk and the kernel's log there", listOf(stalled))
		if alive >= majority {
			problem += ". If it will not recover: coracle member remove NAME"
		}
		problems = append(problems, problem)
	}
	if leader == "" && alive >= majority {
		problems = append(problems, "the servers answer, but this one knows of no leader at this moment; that passes within a second or "+
			"two. If it does not, they do not reach this one, or not one another: the line of its store may say why")
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
		return "none: the cluster stands still. " + fmt.Sprintf("%d of %d voters %s, and %d are needed. Pods keep running and nothing is "+
			"lost. Bring back one of the others; "+
			"if none will come back: coracle store recover", alive, voters, work(stalled), majority), problems
	case len(servers) == 1:
		return "none: this is the only server. With three the cluster survives the loss of one: coracle token print --server", problems
	case voters == 1 && len(servers) == 2:
		return fmt.Sprintf("not that of %s, which alone has a vote. Add a third server and any one may fail: coracle token print --server",
			onlyVoter(servers)), problems
	case spare <= 0:
		return fmt.Sprintf("no further one: %d of %d voters %s, and %d are needed", alive, voters, work(stalled), majority), problems
	case spare == 1:
		return fmt.Sprintf("any one server%s", more(len(silent)+len(stalled))), problems
	}
	return fmt.Sprintf("any %d servers at the same time%s", spare, more(len(silent)+len(stalled))), problems
}

// countReachedByOthers lets servers that only this one does not reach count as those that answer.
func countReachedByOthers(servers []ClusterServer) (out []ClusterServer, problems []string) {
	out = slices.Clone(servers)
	for i, s := range out {
		if !s.Answers && len(s.ReachedBy) > 0 {
			out[i].Answers = true
			problems = append(problems, fmt.Sprintf("%s: no answer at its address from this server, but %s can reach it: it works, and "+
				"is to stay a member. "+
				"The network between this machine and that one is not whole; check cables, switches and firewalls between them", s.Name,
				listOf(s.ReachedBy)))
		}
	}
	return out, problems
}

func onlyVoter(servers []ClusterServer) string {
	for _, s := range servers {
		if s.Role != NonVoter {
			return s.Name
		}
	}
	return ""
}

// work is what voters have to do to count.
func work(stalled []string) string {
	if len(stalled) > 0 {
		return "answer and can store"
	}
	return "answer"
}

func more(failed int) string {
	if failed == 0 {
		return ""
	}
	return " more"
}

func listOf(names []string) string { return strings.Join(names, ", ") }
