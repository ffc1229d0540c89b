// SPDX-License-Identifier: Apache-2.0

package status

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/coracle-k8s/coracle/internal/level"
)

// RaisePath is the path at which a server's admin socket raises the cluster's level, by POST. With RaiseCheck as its
// query it only reports what holds the next level up. The response is a Level in JSON.
const (
	RaisePath  = "/v1/level/raise"
	RaiseCheck = "check"
)

// Level is the level of the cluster, as one of its machines knows it (internal/level).
type Level struct {
	// Cluster is the cluster's level, and Kubernetes the minor version that belongs to it, empty if this program does
	// not know it. Running is the level with which this process started.
	Cluster    int    `json:"cluster"`
	Kubernetes string `json:"kubernetes,omitempty"`
	Running    int    `json:"running"`
	// Newest is the newest level that this program knows.
	Newest int `json:"newest"`
	// Next is the level to which the cluster can be raised, and NextKubernetes its minor version. Next is 0 if no
	// server's program knows another level, and on an agent.
	Next           int    `json:"next,omitempty"`
	NextKubernetes string `json:"nextKubernetes,omitempty"`
	// HoldsUp are sentences that say which machine holds Next up, and what to do.
	HoldsUp []string `json:"holdsUp,omitempty"`
	// Off are machines that are off. They do not hold Next up, but their programs may not know it.
	Off []string `json:"off,omitempty"`
	// Restart are the machines whose process runs at an older level, in the order in which to restart them.
	Restart []string `json:"restart,omitempty"`
	// Raised says that the request has raised the level.
	Raised bool `json:"raised,omitempty"`
}

// LevelInput is what a machine knows of the others when it judges the cluster's level.
type LevelInput struct {
	// Cluster is the cluster's level. Running is that of this process. Newest is the newest that this program knows,
	// and Version is its version.
	Cluster, Running, Newest int
	Version                  string
	// Servers are the members of the store. There are none on an agent.
	Servers []LevelServer
	Members []Member
	// Nodes are the cluster's nodes.
	Nodes []LevelNode
}

// LevelServer is a member of the store, whether it is up or not.
type LevelServer struct {
	// Address is host:port, empty for a server that is alone. Newest is the newest level that its program knows.
	Address      string
	Newest       int
	Leader, Self bool
}

// LevelNode is a Node object. Lives says that its kubelet reports. Version is that of its program.
type LevelNode struct {
	Name, Version string
	Lives         bool
}

// levelMachine is a machine as JudgeLevel sees it.
type levelMachine struct {
	name, version   string
	newest, running int // 0 if unknown
	place           place
	alive           bool
}

// place is where a machine is in the order of restarts.
type place int

const (
	follower place = iota
	leader
	agent
)

// JudgeLevel returns the state of the cluster's level: what holds up the next one, and which machines have to restart.
//
// Each server of the store holds it up, whether it is up or not: the store waits for it or for its removal. Of the
// agents, those hold it up that are alive: their next start would be refused. One that is off gets a newer program
// before it starts again.
func JudgeLevel(in LevelInput) *Level {
	out := &Level{Cluster: in.Cluster, Running: in.Running, Newest: in.Newest}
	if level.Known(in.Cluster) {
		out.Kubernetes = level.Minor(in.Cluster)
	}
	machines := in.machines()
	for _, m := range machines {
		if m.alive && 0 < m.running && m.running < in.Cluster {
			out.Restart = append(out.Restart, m.name)
		}
	}
	next := in.Cluster + 1
	// Of servers alone: what an agent publishes is not checked, and it raises nothing.
	if !slices.ContainsFunc(in.Servers, func(s LevelServer) bool { return s.Newest >= next }) {
		return out
	}
	out.Next = next
	if level.Known(next) {
		out.NextKubernetes = level.Minor(next)
	}
	for _, m := range machines {
		if m.newest >= next {
			continue
		}
		runs := fmt.Sprintf("%s runs coracle %s, which knows levels up to %d: install a newer one there", m.name,
			cmp.Or(m.version, "of an unknown version"), m.newest)
		switch {
		case m.place != agent && m.alive:
			out.HoldsUp = append(out.HoldsUp, "the server "+runs)
		case m.place != agent:
			out.HoldsUp = append(out.HoldsUp, fmt.Sprintf("the server %s is off, and its coracle knew levels up to %d: start it with a newer "+
				"one, or, if it will not come back: coracle member remove %s", m.name, m.newest, m.name))
		case m.alive && m.newest > 0:
			out.HoldsUp = append(out.HoldsUp, fmt.Sprintf("the agent %s. If it is not to be in the cluster: coracle node remove %[2]s; if its "+
				"machine was stolen: coracle node revoke %[2]s", runs, m.name))
		case m.alive && m.version != in.Version:
			out.HoldsUp = append(out.HoldsUp, fmt.Sprintf("the node %s runs coracle %s and is not a member of the gossip, so the levels that it "+
				"knows are unknown: install %s there, or let UDP through to it. If it is not to be in the cluster: coracle node remove %[1]s; "+
				"if its machine was stolen: coracle node revoke %[1]s", m.name, m.version, in.Version))
		case !m.alive && m.version != in.Version:
			out.Off = append(out.Off, m.name)
		}
	}
	return out
}

// machines returns the cluster's machines: servers before agents, the leader as the last of them, and each by its name.
func (in *LevelInput) machines() (out []levelMachine) {
	listed := map[string]bool{}
	for _, s := range in.Servers {
		m := levelMachine{name: s.Address, newest: s.Newest, alive: s.Self}
		if s.Leader {
			m.place = leader
		}
		i := slices.IndexFunc(in.Members, func(g Member) bool {
			return g.Self && s.Self || s.Address != "" && g.Address == s.Address
		})
		if i >= 0 {
			g := in.Members[i]
			m.name, m.version, m.running, m.alive = g.Name, g.Version, g.Running, g.Self || g.State == "alive"
		}
		if s.Self {
			m.name, m.version, m.running = cmp.Or(m.name, "this machine"), in.Version, in.Running
		}
		listed[m.name] = true
		out = append(out, m)
	}
	for _, g := range in.Members {
		if !listed[g.Name] && g.Role == "agent" && (g.Self || g.State == "alive") {
			listed[g.Name] = true
			out = append(out, levelMachine{
				name: g.Name, version: g.Version, newest: g.Level, running: g.Running, place: agent, alive: true,
			})
		}
	}
	for _, n := range in.Nodes {
		if !listed[n.Name] {
			out = append(out, levelMachine{name: n.Name, version: n.Version, place: agent, alive: n.Lives})
		}
	}
	slices.SortStableFunc(out, func(a, b levelMachine) int {
		return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.name, b.name))
	})
	return out
}
