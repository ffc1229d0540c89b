// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"context"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// excludeJoined makes the plan again, without addresses of joined machines, if it allocates a new address of a pool to
// a Service. A machine that has joined, and whose Node was deleted, may come back with its address. It could not
// register if a Service had it. Addresses that Services have already are not checked and not removed: a machine with a
// token may claim any address. An error says that these machines are unknown; then no Service may get a new address.
func (c *Controller) excludeJoined(ctx context.Context, s *State,
	plan map[types.NamespacedName]Allocation) (map[types.NamespacedName]Allocation, error) {
	gets := func(svc *corev1.Service) bool {
		v, has := plan[serviceKey(svc)], statusAddresses(svc)
		return v.Pool && slices.ContainsFunc(v.Addresses, func(a netip.Addr) bool { return !slices.Contains(has, a) })
	}
	if c.o.JoinedAddresses == nil || !slices.ContainsFunc(s.Services, gets) {
		return plan, nil
	}
	var err error
	if s.Joined, err = c.o.JoinedAddresses(ctx); err != nil {
		return nil, err
	}
	return Plan(s), nil
}
