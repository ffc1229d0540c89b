// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"
	"strings"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
)

// followVIPs calls set with the cluster's virtual addresses, which no Service may take, whenever they change, until ctx
// is done. It does not call set where the cluster has no such setting.
func followVIPs(ctx context.Context, settings clustersettings.Follower, set func([]netip.Addr)) {
	clustersettings.Key(ctx, settings, clusterconfig.VIPConfigMap, clusterconfig.VIPData, func(text string) { set(parseVIPs(text)) })
}

// parseVIPs ignores what is no address: the servers report that, and announce no address then.
func parseVIPs(text string) []netip.Addr {
	var out []netip.Addr
	for word := range strings.SplitSeq(text, ",") {
		if a, err := netip.ParseAddr(strings.TrimSpace(word)); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}
