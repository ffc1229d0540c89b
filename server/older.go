// SPDX-License-Identifier: Apache-2.0

package server

import (
	"math"
	"slices"

	"k8s.io/apimachinery/pkg/util/version"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/level"
)

// withoutOlder leaves out servers that are an older Kubernetes than this one, by their programs or by the levels at
// which they run: this machine's kubelet may need what only newer API servers have (kubernetes#127316). A server that
// is not a member of the gossip stays in the list.
func (l Levels) withoutOlder(servers []string) []string {
	return withoutOlder(servers, l.s.gossip.Members(), l.s.o.Version, l.s.o.Level)
}

func withoutOlder(servers []string, members []gossip.Info, own string, running int) []string {
	older := map[string]bool{}
	for _, m := range members {
		for _, api := range m.API {
			older[api.String()] = minorOf(m.Version) < minorOf(own) || m.Running > 0 && minorAt(int(m.Running)) < minorAt(running)
		}
	}
	return slices.DeleteFunc(slices.Clone(servers), func(address string) bool { return older[address] })
}

// minorOf returns the number of the minor version of Kubernetes in a version of coracle, such as 37 of
// v1.37.0+coracle1. It is a large number if there is none.
func minorOf(text string) uint {
	v, err := version.ParseGeneric(text)
	if err != nil {
		return math.MaxUint
	}
	return v.Minor()
}

// minorAt returns the number of the minor version of a level.
func minorAt(l int) uint { return minorOf(level.Minor(min(l, level.Newest()))) }
