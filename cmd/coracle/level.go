// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/util/compatibility"
	basecompatibility "k8s.io/component-base/compatibility"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/server"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/roster"
)

// serverLevel returns the level at which a server starts: that of its folder, once it has a store. Before, it is the
// level of the cluster that the server joins. joined is nil for a server that joins none: a new cluster has the newest
// level.
func serverLevel(o server.Options, joined *admission.Joined) int {
	known := datadir.Level(o.ServerDir)
	switch {
	case known > 0 && (joined == nil || o.HasStore()):
		return known
	case joined != nil && roster.HasPeers(o.ServerDir): // its store is lost, and joined may be of long ago
		return max(joined.Level, known, level.First)
	case joined != nil:
		return max(joined.Level, level.First)
	}
	return level.Newest()
}

// emulate makes this process the minor version of Kubernetes of a level. Everything in the process reads the feature
// gates of one registry: the API server, the controllers, the scheduler and the kubelet. So it is called before any of
// them reads one. It leaves the registry as it is when that version is the program's own. The version that storage
// stays compatible with is upstream's default, the minor version before. The level must be one that this program knows.
func emulate(at int) error {
	if err := emulateMinor(compatibility.DefaultComponentGlobalsRegistry, level.Minor(at)); err != nil {
		return fmt.Errorf("becoming Kubernetes %s, which the cluster's level %d is: %w", level.Minor(at), at, err)
	}
	return nil
}

// emulateMinor sets the versions and the feature gates of a registry.
func emulateMinor(registry basecompatibility.ComponentGlobalsRegistry, to string) error {
	effective, gates := registry.ComponentGlobalsOrRegister(basecompatibility.DefaultKubeComponent, nil, nil) // registered by its package
	minor := version.MustParseGeneric(to)
	if minor.EqualTo(effective.EmulationVersion()) {
		return nil
	}
	effective.SetEmulationVersion(minor)
	return gates.SetEmulationVersionAndMinCompatibilityVersion(effective.EmulationVersion(), effective.MinCompatibilityVersion())
}

// agentLevel returns what an agent knows of the cluster's level: it is at least that at which its live servers run.
func agentLevel(running int, members []status.Member) *status.Level {
	cluster := running
	var self []status.Member
	for _, m := range members {
		switch {
		case m.Self:
			self = append(self, m)
		case m.Role == gossip.RoleServer.String() && m.State == string(gossip.Alive):
			cluster = max(cluster, m.Running)
		}
	}
	return status.JudgeLevel(status.LevelInput{Cluster: cluster, Running: running, Newest: level.Newest(), Members: self})
}
