// SPDX-License-Identifier: Apache-2.0

package status

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func levelServers(newest ...int) (out []LevelServer) {
	for i, n := range newest {
		out = append(out, LevelServer{Address: []string{"10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443"}[i], Newest: n, Self: i == 0,
			Leader: i == 0})
	}
	return out
}

// member returns a member of the gossip, as its metadata say.
func member(name, role, address, state string, newest, running int) Member {
	return Member{Name: name, Role: role, Address: address, State: state, Level: newest, Running: running,
		Version: map[int]string{1: "v1", 2: "v2"}[newest]}
}

func TestJudgeLevel(t *testing.T) {
	a := member("a", "server", "10.0.0.1:6443", "alive", 2, 1)
	a.Self = true
	b, c := member("b", "server", "10.0.0.2:6443", "alive", 2, 1), member("c", "server", "10.0.0.3:6443", "alive", 2, 1)
	off := member("c", "server", "10.0.0.3:6443", "silent", 0, 0)
	d, old := member("d", "agent", "10.0.0.4:6443", "alive", 2, 1), member("e", "agent", "10.0.0.5:6443", "alive", 1, 1)
	for _, tt := range []struct {
		name                  string
		in                    LevelInput
		next                  int
		holdsUp, off, restart []string
	}{
		{name: "the program knows no further level",
			in: LevelInput{Cluster: 1, Newest: 1, Servers: levelServers(1), Members: []Member{{Name: "a", Self: true,
				Role: "server", Level: 1, Running: 1}}}},
		{name: "all machines know the next one",
			in: LevelInput{Cluster: 1, Newest: 2, Running: 1, Servers: levelServers(2, 2, 2), Members: []Member{a, b, c, d}}, next: 2},
		{name: "a single server has no address",
			in: LevelInput{Cluster: 1, Newest: 2, Running: 1, Servers: []LevelServer{{Newest: 2, Self: true}},
				Members: []Member{a}}, next: 2},
		{name: "an older server, an older agent",
			in: LevelInput{Cluster: 1, Newest: 2, Running: 1, Version: "v2", Servers: levelServers(2, 1, 2),
				Members: []Member{a, member("b", "server", "10.0.0.2:6443", "alive", 1, 1), c, d, old}},
			next: 2, holdsUp: []string{"the server b runs coracle v1, which knows levels up to 1: install a newer one there",
				"the agent e runs coracle v1, which knows levels up to 1: install a newer one there. " +
					"If it is not to be in the cluster: coracle node remove e; if its machine was stolen: coracle node revoke e"}},
		{name: "an agent claims a level that no server knows",
			in: LevelInput{Cluster: 1, Newest: 1, Running: 1, Version: "v1", Servers: levelServers(1, 1),
				Members: []Member{a, b, member("x", "agent", "10.0.0.9:6443", "alive", 99, 99)}}},
		{name: "this program is the older one", in: LevelInput{Cluster: 1, Newest: 1, Running: 1, Version: "v1", Servers: levelServers(1, 2),
			Members: []Member{a, b}}, next: 2,
			holdsUp: []string{"the server a runs coracle v1, which knows levels up to 1: install a newer one there"}},
		{name: "servers that are off", in: LevelInput{Cluster: 1, Newest: 2, Running: 1, Servers: levelServers(2, 2, 1),
			Members: []Member{a, b, off}}, next: 2,
			holdsUp: []string{"the server c is off, and its coracle knew levels up to 1: " +
				"start it with a newer one, or, if it will not come back: coracle member remove c"}},
		{name: "a server that is off and knows it",
			in: LevelInput{Cluster: 1, Newest: 2, Running: 1, Servers: levelServers(2, 2, 2), Members: []Member{a, b, off}}, next: 2},
		{name: "nodes without gossip", in: LevelInput{Cluster: 1, Newest: 2, Running: 1, Version: "v2", Servers: levelServers(2),
			Members: []Member{a, d, member("h", "agent", "10.0.0.8:6443", "silent", 0, 0)},
			Nodes: []LevelNode{{Name: "d", Version: "v1", Lives: true}, {Name: "f", Version: "v1"}, {Name: "g", Version: "v1", Lives: true},
				{Name: "i", Version: "v2", Lives: true}}},
			next: 2, off: []string{"f"},
			holdsUp: []string{"the node g runs coracle v1 and is not a member of the gossip, so the levels that it knows are unknown: " +
				"install v2 there, or let UDP through to it. " +
				"If it is not to be in the cluster: coracle node remove g; if its machine was stolen: coracle node revoke g"}},
		{name: "after a raise", in: LevelInput{Cluster: 2, Newest: 2, Running: 1, Servers: levelServers(2, 2, 2),
			Members: []Member{d, c, b, a}}, restart: []string{"b", "c", "a", "d"}},
		{name: "after a raise, some have restarted",
			in: LevelInput{Cluster: 2, Newest: 2, Running: 2, Servers: levelServers(2, 2), Members: []Member{a, b, d,
				member("e", "agent", "10.0.0.5:6443", "alive", 2, 2)}}, restart: []string{"b", "d"}},
		{name: "an agent's own view", in: LevelInput{Cluster: 2, Newest: 2, Running: 1,
			Members: []Member{{Name: "d", Self: true, Role: "agent", Level: 2,
				Running: 1}}}, restart: []string{"d"}},
	} {
		l := JudgeLevel(tt.in)
		testenv.Equal(t, l.Next, tt.next, "%s: the next level is", tt.name)
		testenv.EqualSlices(t, l.HoldsUp, tt.holdsUp, "%s: held up by", tt.name)
		testenv.EqualSlices(t, l.Off, tt.off, "%s: off are", tt.name)
		testenv.EqualSlices(t, l.Restart, tt.restart, "%s: to restart are", tt.name)
	}
}
