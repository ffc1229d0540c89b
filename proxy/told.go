// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"

	"k8s.io/klog/v2"
	upstreamnft "k8s.io/kubernetes/pkg/proxy/nftables"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nfttable"
	"github.com/coracle-k8s/coracle/internal/unexported"
)

// told is upstream's way to one table, where the kernel's news say which chains and sets there are. Upstream's proxier wants to know it in every sync, to find those
// that no Service needs any more, and for thousands of Services the kernel's whole answer takes a quarter of the sync: docs/adr/0101.
type told struct {
	knftables.Interface
	names *nfttable.Names
}

// List implements knftables.Interface.
func (t told) List(ctx context.Context, objectType string) ([]string, error) {
	var out []string
	var err error
	switch objectType {
	case "chain", "chains":
		out, err = t.names.Chains()
	case "set", "sets":
		out, err = t.names.Sets()
	default:
		return t.Interface.List(ctx, objectType)
	}
	if err != nil {
		return t.Interface.List(ctx, objectType)
	}
	return out, nil
}

// Run implements knftables.Interface. It starts no program for what changes nothing: of two families a change mostly concerns one.
func (t told) Run(ctx context.Context, tx *knftables.Transaction) error {
	if tx.NumOperations() == 0 && tx.String() == "" { // else it has an error
		return nil
	}
	err := t.Interface.Run(ctx, tx)
	if err != nil {
		t.names.Forget()
	}
	return err
}

// wayAt is where a proxier has its way to the table. No function of upstream's leads there.
var wayAt = []string{"nftables"}

// tell has a proxier that has not synced yet be told of its table, until ctx is done. Where that cannot be, it asks each time, as upstream does.
func (b *nftables) tell(ctx context.Context, p *upstreamnft.Proxier, t nfttable.Table) {
	way, err := unexported.Field[knftables.Interface](p, wayAt)
	var names *nfttable.Names
	if err == nil {
		names, err = nfttable.FollowNames(t)
	}
	if err != nil {
		klog.FromContext(ctx).Info("The kernel does not tell of changes to the Service proxy's tables; changes among thousands of Services take longer", "err", err)
		return
	}
	*way = told{*way, names}
	b.names = append(b.names, names)
	context.AfterFunc(ctx, names.Close)
}
