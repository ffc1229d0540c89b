// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"maps"
	"sync"
	"syscall"
	"time"

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
	sender interface{ Send(text string) error } // an nftsend.Sender
	stale  *stale
	// refused hears of what the kernel did not take when it was sent, and took from nft.
	refused func(error)
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

// Run implements knftables.Interface.
func (t told) Run(ctx context.Context, tx *knftables.Transaction) error {
	err := t.write(ctx, tx)
	if err != nil {
		t.names.Forget()
	}
	t.stale.written(err == nil)
	return err
}

// write starts no program for what changes nothing: of two families a change mostly concerns one. What is refused when it is sent has changed nothing, and is nft's.
func (t told) write(ctx context.Context, tx *knftables.Transaction) error {
	if tx.NumOperations() == 0 && tx.String() == "" { // else it has an error
		return nil
	}
	var refused error
	if tx.NumOperations() <= fewOperations {
		if refused = t.sender.Send(tx.String()); refused == nil {
			return nil
		}
	}
	err := t.Interface.Run(ctx, tx) // nft says better what the kernel refuses
	var errno syscall.Errno
	if err == nil && errors.As(refused, &errno) {
		t.refused(refused)
	}
	return err
}

// stale remembers since when each chain is needed by no Service. Upstream deletes those that the last sync found so more than a second ago, and dates them anew in each sync: kube-proxy's are a second
// apart at least. Ours may be less, and would neither delete any chain nor stop emptying all of them as long as Services change all the time.
type stale struct {
	upstream *map[string]time.Time // nil: it is not to be had
	since    map[string]time.Time
}

// written follows each transaction. Chains are dated when one was written that leaves them to nobody, so that a second after that is enough, whatever was written since; upstream takes
// out what is needed again.
func (s *stale) written(ok bool) {
	switch {
	case s.upstream == nil:
	case !ok:
		s.since = nil
	default:
		for chain := range *s.upstream {
			if since, known := s.since[chain]; known {
				(*s.upstream)[chain] = since
			}
		}
		s.since = maps.Clone(*s.upstream)
	}
}

// Where a proxier has its way to the table, and the chains that it is going to delete. No function of upstream's leads there.
var wayAt, staleAt = []string{"nftables"}, []string{"staleChains"}

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
	log := klog.FromContext(ctx)
	unneeded := &stale{}
	if unneeded.upstream, err = unexported.Field[map[string]time.Time](p, staleAt); err != nil {
		log.Info("Chains that no Service needs any more stay in the kernel as long as Services change every second", "err", err)
	}
	sender := nftsend.New(t, sets)
	var once sync.Once
	refused := func(err error) {
		once.Do(func() {
			log.Info("The kernel refused a change of Services as it was sent, and took it from nft. Services work; where that happens again and again, their changes take longer", "err", err)
		})
	}
	*way = told{*way, names, sender, unneeded, refused}
	b.names = append(b.names, names)
	context.AfterFunc(ctx, names.Close)
	context.AfterFunc(ctx, sender.Close)
}
