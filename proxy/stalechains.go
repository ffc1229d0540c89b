// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"maps"
	"time"

	"k8s.io/klog/v2"
	upstreamnft "k8s.io/kubernetes/pkg/proxy/nftables"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// staleChainsField is where upstream's proxier keeps the chains that it is going to delete. No function leads there.
var staleChainsField = []string{"staleChains"}

// staleAge is how long upstream's proxier leaves a stale chain in the kernel, which needs that time to drop the last
// reference.
const staleAge = time.Second

// staleChains remembers since when each chain of one proxier is needed by no Service. Upstream dates all of them again
// in each sync and deletes those whose date is older than staleAge: kube-proxy's syncs are that far apart. The front's
// may be
// 50 ms apart, and would neither delete a chain nor stop emptying all of them as long as Services change.
type staleChains struct {
	upstream *map[string]time.Time
	since    map[string]time.Time
}

// keepStaleDates has the back end follow a proxier's stale chains. Where the field is not found, chains go as upstream
// deletes them.
func (b *nftables) keepStaleDates(ctx context.Context, p *upstreamnft.Proxier) {
	chains, err := kubecompat.Field[map[string]time.Time](p, staleChainsField)
	if err != nil {
		klog.FromContext(ctx).Info("Chains that no Service needs stay in the kernel while Services change every second",
			"err", err)
		return
	}
	b.stale = append(b.stale, &staleChains{upstream: chains})
}

// synced gives chains that were stale before a sync their first date again. A chain that was old enough when the sync
// began, and is still there, could not be deleted, and keeps its new date.
func (s *staleChains) synced(start time.Time) {
	for chain := range *s.upstream {
		if since, known := s.since[chain]; known && !since.Before(start.Add(-staleAge)) {
			(*s.upstream)[chain] = since
		}
	}
	s.since = maps.Clone(*s.upstream)
}
