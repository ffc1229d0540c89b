// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// nftablesAgain is the interval of checks of a kernel without nftables: a module may be loaded, or installed, at any
// time.
const nftablesAgain = 10 * time.Second

// awaitNFTables waits for nftables after the network could not be set up. usable returns an error while the kernel has
// no nftables. In that case awaitNFTables logs it once, shows it in the status lines, and returns true when the kernel
// has nftables. It returns false if that was not the cause, or ctx is done. The rest of the node, and the server in
// this process, work meanwhile.
func (o Options) awaitNFTables(ctx context.Context, usable func() error) (again bool) {
	err := usable()
	if err == nil {
		return false
	}
	found := preflight.WithoutNFTables(err)
	var waiting []*status.Part
	for _, part := range []struct {
		name string
		runs bool
	}{
		{partPodNetwork, o.Cluster.NetworkBackend != clusterconfig.NetworkNone},
		{partPolicies, o.servesPolicies()},
		{partServices, !o.Cluster.NoServiceProxy},
	} {
		if part.runs {
			waiting = append(waiting, o.statusPart(part.name))
		}
	}
	for _, part := range waiting {
		part.Set(status.Failed, found+". "+preflight.NFTablesAdvice)
	}
	o.Logger.Error("agent: pods get no network and Services are not served: "+found, "do", preflight.NFTablesAdvice, "asked again",
		"every "+nftablesAgain.String())
	for timers.Sleep(ctx, nftablesAgain) {
		if usable() == nil {
			for _, part := range waiting {
				part.Set(status.Starting, "")
			}
			o.Logger.Info("agent: the kernel now supports nftables")
			return true
		}
	}
	return false
}
