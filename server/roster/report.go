// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/storeusage"
)

const (
	// surveyTimeout limits the requests to the servers. namesTimeout limits the request to the API server for their
	// names.
	surveyTimeout, namesTimeout = 5 * time.Second, 2 * time.Second
)

// Clocks returns the problems of the servers' clocks, within surveyTimeout.
func (r *Roster) Clocks(ctx context.Context) (status.ClocksReport, error) {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	problems := status.Clocks(listServers(r.o.Store.Opened().Cluster().Survey(ctx), r.serverNames(ctx), nil))
	return status.ClocksReport{Now: r.o.Clock.Now(), Problems: problems}, nil
}

// Report returns a list of the cluster's servers with their state, within surveyTimeout. It works without a majority.
func (r *Roster) Report(ctx context.Context) (*status.Servers, error) {
	store := r.o.Store.Opened()
	if store == nil {
		return nil, errors.New("the store is not open yet")
	}
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	states := store.Cluster().Survey(ctx)
	servers := listServers(states, r.serverNames(ctx), publishedNames(ctx, store.Client().KV))
	noteReached(servers, store.Cluster().ReachedBy(ctx, states))
	noteAlive(servers, r.o.Machines())
	out := &status.Servers{Servers: servers, Problems: []string{}}
	words, problems := status.Failures(servers)
	out.Failures, out.Problems = words, slices.Concat(out.Problems, problems, status.Clocks(servers))
	storeusage.Judge(out, store.View(), store.Health().Quota())
	return out, nil
}

// noteReached records which servers can reach those that do not answer this one. reached has their IDs in the store.
func noteReached(servers []status.ClusterServer, reached map[string][]string) {
	names := map[string]string{}
	for _, c := range servers {
		names[c.ServerID] = c.Name
	}
	for i := range servers {
		for _, by := range reached[servers[i].ServerID] {
			servers[i].ReachedBy = append(servers[i].ReachedBy, names[by])
		}
		slices.Sort(servers[i].ReachedBy)
	}
}

// noteAlive records which of the servers that do not answer this one are alive, by the gossip.
func noteAlive(servers []status.ClusterServer, machines []gossip.Info) {
	for i := range servers {
		s := &servers[i]
		s.Alive = !s.Answers && slices.ContainsFunc(machines, func(m gossip.Info) bool {
			return !m.Self && m.Role == gossip.RoleServer && m.State == gossip.Alive && m.Address.String() == s.Address
		})
	}
}

// serverNames returns the names of servers' nodes, by the servers' IDs in the store. Without a majority it contains
// only this server's name.
func (r *Roster) serverNames(ctx context.Context) map[string]string {
	names := map[string]string{}
	if client, err := r.o.API(); err == nil {
		ctx, cancel := context.WithTimeout(ctx, namesTimeout)
		defer cancel()
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: RoleLabel, ResourceVersion: "0"})
		if err == nil {
			for i := range nodes.Items {
				if id := nodes.Items[i].Annotations[clusterconfig.ServerIDAnnotation]; id != "" {
					names[id] = nodes.Items[i].Name
				}
			}
		}
	}
	names[r.o.ServerID] = r.o.Name
	return names
}

// listServers converts the members' states into a report. This server comes first, then the others by name. published
// are the names that servers once published. Such a name is used for a server of which no newer one is known, unless
// another server now has that name, as after a reinstallation.
func listServers(states []raftstore.MemberState, names, published map[string]string) []status.ClusterServer {
	taken := map[string]bool{}
	for _, m := range states {
		taken[cmp.Or(names[m.Name], m.Hostname)] = true
	}
	var out []status.ClusterServer
	for _, m := range states {
		c := status.ClusterServer{
			Name: names[m.Name], ID: strconv.FormatUint(m.ID, 16), ServerID: m.Name, Role: status.NonVoter,
			Self: m.Self, Answers: m.Answers, Lag: m.Lag, Version: m.Version, Full: m.Full, Stalled: m.Stalled,
			Refusing: string(m.Refusing), Quota: m.Quota, ClusterQuota: m.ClusterQuota,
			ClockAhead: m.ClockAhead, ClockWithin: m.ClockWithin,
		}
		switch {
		case c.Name != "":
		case m.Hostname != "":
			c.Name = m.Hostname
		case published[m.Name] != "" && !taken[published[m.Name]]:
			c.Name = published[m.Name]
		default:
			c.Name = m.Name
		}
		if strings.Contains(m.Address, ":") { // a single server has a name as its address
			c.Address = m.Address
		}
		if !m.Self {
			c.Heard = m.Contact
		}
		switch {
		case m.Leader:
			c.Role = status.Leader
		case m.Voter:
			c.Role = status.Voter
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b status.ClusterServer) int {
		if a.Self != b.Self {
			if a.Self {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return out
}
