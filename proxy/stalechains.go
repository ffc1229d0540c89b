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

// staleChainsField is the path of the field with the chains that upstream's proxier will delete. Upstream has no
// function that returns it.
var staleChainsField = []string{"staleChains"}

// staleAge is how long upstream's proxier leaves a stale chain in the kernel, which needs that time to drop the last
// reference.
const staleAge = time.Second

// staleChains records since when each chain of one proxier is needed by no Service. Upstream sets all these times again
// in each sync, and deletes the chains whose time is older than staleAge: kube-proxy's syncs are that far apart. The
// front's syncs may be 50 ms apart. So without the recorded times upstream would delete no chain while Services change,
// and would empty all of them in each sync.
type staleChains struct {
	upstream  *map[string]time.Time
	firstSeen map[string]time.Time
}

// trackStaleChains records a proxier's stale chains for the back end. Where the field is not found, chains are deleted
// as upstream does it.
func (b *nftables) trackStaleChains(ctx context.Context, p *upstreamnft.Proxier) {
	chains, err := kubecompat.Field[map[string]time.Time](p, staleChainsField)
	if err != nil {
		klog.FromContext(ctx).Info("Chains that no Service needs stay in the kernel while Services change every second",
			"err", err)
		return
	}
	b.stale = append(b.stale, &staleChains{upstream: chains})
}

// synced restores the first time of chains that were stale before a sync. A chain that was old enough when the sync
// began, and still exists, could not be deleted: it keeps its new time.
func (s *staleChains) synced(start time.Time) {
	for chain := range *s.upstream {
		if since, known := s.firstSeen[chain]; known && !since.Before(start.Add(-staleAge)) {
			(*s.upstream)[chain] = since
		}
	}
	s.firstSeen = maps.Clone(*s.upstream)
}
