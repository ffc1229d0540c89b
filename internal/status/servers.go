// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// ServersPath is the path at which a server's admin socket reports the cluster's servers.
const ServersPath = "/v1/servers"

// ClusterPath is the path at which a server's API reports the cluster's servers and its own components, to clients with
// the ClusterRole clusterconfig.StatusRole. The response is a ServerReport in JSON.
const ClusterPath = "/coracle/status"

// ServerReport is the state of the cluster and of the server that replies, for users of the API.
type ServerReport struct {
	Servers
	// Components are the parts of the server that replies.
	Components []Component `json:"components"`
	// Store is the size of that server's store. Snapshots are the snapshots of that server; nil where it has none and
	// takes none.
	Store     *StoreSize `json:"store,omitempty"`
	Snapshots *Snapshots `json:"snapshots,omitempty"`
	// VirtualIPs are the cluster's virtual addresses, which the leader announces. NetworkBackend is the network back
	// end; empty where another plugin makes the pod network.
	VirtualIPs     []string `json:"virtualIPs,omitempty"`
	NetworkBackend string   `json:"networkBackend,omitempty"`
}

// StoreSize is the size of the store's content, in bytes.
type StoreSize struct {
	Live  int64 `json:"live"`            // the current keys and values
	Total int64 `json:"total"`           // with their history
	Quota int64 `json:"quota,omitempty"` // the size from which on writes are refused; 0 for none
}

// Snapshots describes the snapshots of one server.
type Snapshots struct {
	Count int `json:"count"` // on the server's machine
	// Last is when the newest was taken. LastSize is its size in bytes.
	Last     time.Time `json:"last,omitzero"`
	LastSize int64     `json:"lastSize,omitempty"`
	// Failures is the number of scheduled snapshots that failed since the server was started.
	Failures int64 `json:"failures"`
	// Scheduled says whether the server takes snapshots by a schedule.
	Scheduled bool `json:"scheduled"`
}

// Servers is the state of all servers of the cluster, as one of them knows it.
type Servers struct {
	Servers []ClusterServer `json:"servers"`
	// Failures is a sentence that says which failures of servers the cluster can still survive.
	Failures string `json:"failures"`
	// Problems are sentences that say what is wrong and what to do.
	Problems []string `json:"problems"`
	// Notes are sentences about what may become a problem.
	Notes []string `json:"notes,omitempty"`
}

// Roles of a server in the store.
const (
	Leader   = "leader"
	Voter    = "voter"
	NonVoter = "non-voter"
)

// ClusterServer is one server of the cluster.
type ClusterServer struct {
	Name string `json:"name"` // name of its node, or its own if it has no node
	// ID is its id in etcd's protocol, in hexadecimal. ServerID is its name in the store.
	ID       string `json:"id"`
	ServerID string `json:"serverID"`
	Address  string `json:"address,omitempty"`
	Role     string `json:"role"`
	Self     bool   `json:"self,omitempty"`
	// Answers says whether it replied just now.
	Answers bool      `json:"answers"`
	Heard   time.Time `json:"heard,omitzero"` // when it last replied; not set for the server that reports
	// Lag is how many entries of the store's log it has not applied yet.
	Lag uint64 `json:"lag"`
	// ReachedBy are the other servers that reach it, when it does not reply to the server that reports.
	ReachedBy []string `json:"reachedBy,omitempty"`
	// Alive says that the gossip counts it as alive, when it does not reply to the server that reports: it replies to
	// other machines.
	Alive   bool   `json:"alive,omitempty"`
	Version string `json:"version,omitempty"`
	Full    bool   `json:"full,omitempty"` // its disk is full
	// Stalled says that its disk does not finish a write. The server replies, and does not count for a majority.
	Stalled bool `json:"stalled,omitempty"`
	// Refusing is why it refuses writes, as in the metric coracle_store_writes_refused.
	Refusing string `json:"refusing,omitempty"`
	// Quota is how many bytes its memory allows for the store; 0 if it does not say so. ClusterQuota is how many the
	// cluster may have, if it leads.
	Quota        int64 `json:"quota,omitempty"`
	ClusterQuota int64 `json:"clusterQuota,omitempty"`
	// ClockAhead is by how many nanoseconds its clock is ahead of that of the server that reports, within ClockWithin.
	// The latter is 0 if the two were not compared.
	ClockAhead  time.Duration `json:"clockAhead,omitempty"`
	ClockWithin time.Duration `json:"clockWithin,omitempty"`
}

// Failures returns a sentence that says which failures of servers a cluster can survive, and the problems of its
// servers.
//
// For the cluster to work, a majority of the voters has to store entries, not only to reply. The other servers replace
// voters that do not reply.
func Failures(servers []ClusterServer) (words string, problems []string) {
	servers, problems = countReachedByOthers(servers)
	voters, alive := 0, 0
	var leader string
	var silent, stalled, cutOff []string
	for _, s := range servers {
		switch {
		case !s.Answers && s.Alive:
			cutOff = append(cutOff, s.Name)
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
		problem := fmt.Sprintf("%s: unreachable from this server. Check that the machine is on, that coracle runs there, and that the network "+
			"between them works.", listOf(silent))
		if alive >= majority { // without a majority no member can be removed; the text below has the hint
			problem += " If it will not come back: coracle member remove NAME"
		}
		problems = append(problems, problem)
	}
	if len(cutOff) > 0 {
		problems = append(problems, fmt.Sprintf("%s: unreachable from this server, but alive: the gossip of this machine hears it. Check the "+
			"network between the two machines (TCP), and their clocks. Do not remove it", listOf(cutOff)))
	}
	if len(stalled) > 0 {
		problem := fmt.Sprintf("%s: its store's disk is stalled, so it answers but does not count for the majority. "+
			"Nothing is lost, and its pods keep running. Check the disk and the kernel's log there", listOf(stalled))
		if alive >= majority {
			problem += ". If it will not recover: coracle member remove NAME"
		}
		problems = append(problems, problem)
	}
	if leader == "" && alive >= majority {
		problems = append(problems, "a majority of the servers answers, but this server knows no leader at this moment. An election takes a second or "+
			"two. If this lasts, check the network between the servers; the line of this server's store may name the reason")
	}
	for _, s := range servers {
		if s.Full {
			problems = append(problems, fmt.Sprintf("%s: the disk of its store is full. Nothing is lost; free some space there", s.Name))
		} else if s.Refusing != "" && !s.Self { // this server's own reason is on the line of its store
			problems = append(problems, s.Name+": "+RefusalProblem(s.Refusing))
		}
	}
	switch {
	case voters == 0:
		return "not known yet: this server does not know the cluster's servers yet", problems
	case alive < majority && len(cutOff) > 0:
		return fmt.Sprintf("none by what this server reaches: %d of %d voters %s, and %d are needed. But %s: alive, as the gossip of this "+
			"machine hears; this server is cut off from them. Do not recover this server: the others may work without it, and there would be "+
			"two clusters. Pods keep running and nothing is lost", alive, voters, votersTask(stalled), majority, listOf(cutOff)), problems
	case alive < majority:
		return "none: the cluster has no quorum. " + fmt.Sprintf("%d of %d voters %s, and %d are needed. Pods keep running and nothing is "+
			"lost. Bring back one of the others; "+
			"if none will come back: coracle store recover", alive, voters, votersTask(stalled), majority), problems
	case len(servers) == 1:
		return "none: this is the only server. With three the cluster survives the loss of one: coracle token print --server", problems
	case voters == 1 && len(servers) == 2:
		return fmt.Sprintf("not %s, which is the only voter. With a third server any one may fail: coracle token print --server",
			onlyVoter(servers)), problems
	case spare <= 0:
		return fmt.Sprintf("no further server: %d of %d voters %s, and %d are needed", alive, voters, votersTask(stalled), majority), problems
	case spare == 1:
		return fmt.Sprintf("any one server%s", furtherFailures(len(silent)+len(stalled)+len(cutOff))), problems
	}
	return fmt.Sprintf("any %d servers at the same time%s", spare, furtherFailures(len(silent)+len(stalled)+len(cutOff))), problems
}

// countReachedByOthers counts a server as one that replies when only this server does not reach it.
func countReachedByOthers(servers []ClusterServer) (out []ClusterServer, problems []string) {
	out = slices.Clone(servers)
	for i, s := range out {
		if !s.Answers && len(s.ReachedBy) > 0 {
			out[i].Answers = true
			problems = append(problems, fmt.Sprintf("%s: unreachable from this server, but %s can reach it: it works, and "+
				"should stay a member. "+
				"The network between the two machines is faulty; check cables, switches and firewalls between them", s.Name,
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

// votersTask says what voters have to do to count for the majority.
func votersTask(stalled []string) string {
	if len(stalled) > 0 {
		return "answer and can store"
	}
	return "answer"
}

func furtherFailures(failed int) string {
	if failed == 0 {
		return ""
	}
	return " more"
}

func listOf(names []string) string { return strings.Join(names, ", ") }
