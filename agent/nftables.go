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

// nftablesAgain is how often a kernel that has no nftables is asked again: a module may be loaded, or installed, any
// time.
const nftablesAgain = 10 * time.Second

// awaitNFTables is for a network that could not be set up. Where that was for want of nftables in the kernel, which
// usable tells, it says so once in the log, and on the board for as long as it is so; it returns when the kernel has
// them. It says whether to try again. The rest of the node works meanwhile, and the server beside it.
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
		{partPodNetwork, o.NetworkBackend != clusterconfig.NetworkNone},
		{partPolicies, o.NetworkBackend != clusterconfig.NetworkNone && !o.DisablePolicies},
		{partServices, !o.DisableProxy},
	} {
		if part.runs {
			waiting = append(waiting, o.part(part.name))
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
			o.Logger.Info("agent: the kernel has nftables now")
			return true
		}
	}
	return false
}
