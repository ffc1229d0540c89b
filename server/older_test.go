// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/netip"
	"testing"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNoFailoverToOlderServers: a machine's kubelet is not led to the API of an older Kubernetes, by its program or by
// its level. Patches of one minor version are no difference.
func TestNoFailoverToOlderServers(t *testing.T) {
	all := []string{"10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443", "[fd00::4]:6443", "10.0.0.5:6443"}
	server := func(i int, version string, running int) gossip.Info {
		return gossip.Info{Meta: gossip.Meta{API: []netip.AddrPort{netip.MustParseAddrPort(all[i])}, Version: version, Running: uint64(running)}}
	}
	newest := level.Newest()
	members := []gossip.Info{
		server(0, "v1.36.9+coracle3", newest), server(1, "v1.37.0+coracle", newest), server(2, "v1.38.1", newest+1), server(3, "", 0),
		server(4, "v1.37.9", level.Oldest()),
	}
	want := all[1:]
	if level.Minor(level.Oldest()) != level.Minor(newest) {
		want = all[1:4]
	}
	testenv.EqualSlices(t, withoutOlder(all, members, "v1.37.2+coracle1", newest), want, "the servers that may take over are")
	testenv.EqualSlices(t, withoutOlder(all, nil, "v1.37.2+coracle1", newest), all, "without gossip, the servers that may take over are")
}
