// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
)

// followVIPs calls set with the cluster's virtual addresses, which no Service may take, whenever they change, until ctx
// is done. It does not call set where the cluster has no such setting.
func followVIPs(ctx context.Context, settings clustersettings.Follower, set func([]netip.Addr)) {
	clustersettings.Key(ctx, settings, clusterconfig.VIPConfigMap, clusterconfig.VIPData, func(text string) {
		set(clusterconfig.ParseAddresses(text)) // the servers report what is no address, and announce no address then
	})
}
