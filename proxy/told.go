// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"

	"k8s.io/klog/v2"
	upstreamnft "k8s.io/kubernetes/pkg/proxy/nftables"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nftsend"
	"github.com/coracle-k8s/coracle/internal/nfttable"
	"github.com/coracle-k8s/coracle/internal/unexported"
)

// told is upstream's way to one table, where the kernel's news say which chains and sets there are. Upstream's proxier wants to know it in every sync, to find those
// that no Service needs any more, and for thousands of Services the kernel's whole answer takes a quarter of the sync: docs/adr/0101.
//
// What it writes goes to the kernel without the program nft, as long as it is little and of the forms that nftsend knows: nft's start, and that it reads all chains and sets for a single rule, are
// half of such a change: docs/adr/0122.
type told struct {
	knftables.Interface
	names  *nfttable.Names
	sender *nftsend.Sender
}

// sets are upstream's that have to do with Services, by its names.
var sets = func() map[string]nftsend.Set {
	at := []nftsend.Type{nftsend.IPAddr, nftsend.InetProto, nftsend.InetService}
	return map[string]nftsend.Set{
		"cluster-ips":           {Key: at[:1]},
		"hairpin-connections":   {Key: append(at[:1:1], at...)},
		"service-ips":           {Key: at, Verdicts: true},
		"firewall-ips":          {Key: at, Verdicts: true},
		"no-endpoint-services":  {Key: at, Verdicts: true},
		"service-nodeports":     {Key: at[1:], Verdicts: true},
		"no-endpoint-nodeports": {Key: at[1:], Verdicts: true},
	}
}()

// fewOperations is how many are looked at at all, so that a full sync's text is put together once.
const fewOperations = 500

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

// Run implements knftables.Interface. It starts no program for what changes nothing: of two families a change mostly concerns one. What is refused when it is sent has changed nothing, and is nft's.
func (t told) Run(ctx context.Context, tx *knftables.Transaction) error {
	if tx.NumOperations() == 0 && tx.String() == "" { // else it has an error
		return nil
	}
	if tx.NumOperations() <= fewOperations && t.sender.Send(tx.String()) == nil {
		return nil
	}
	err := t.Interface.Run(ctx, tx) // nft says better what the kernel refuses
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
	sender := nftsend.New(t, sets)
	*way = told{*way, names, sender}
	b.names = append(b.names, names)
	context.AfterFunc(ctx, names.Close)
	context.AfterFunc(ctx, sender.Close)
}
