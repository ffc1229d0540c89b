// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"

	"k8s.io/klog/v2"
	upstreamnft "k8s.io/kubernetes/pkg/proxy/nftables"

	"github.com/coracle-k8s/coracle/internal/nfttable"
	"github.com/coracle-k8s/coracle/internal/unexported"
)

// filled is a set or a map that upstream's proxier fills one by one. It remembers what it has put in there, and sends only what is new: what another program has taken out
// does not come back before everything is written anew.
type filled struct {
	table    nfttable.Table
	name     string
	elements *map[string]string // upstream's memory, which only a sync changes; nil: only a full sync changes the set
	written  *written           // what that has written; nil: it is not known
	more     int                // how many more the kernel counts when all is there: none, unless upstream spells one element in two ways
	counted  int                // how many more there were after the last full sync
	learned  bool               // that it was counted; what is remembered is to be there in any case
}

// nodePortIPs is upstream's set of the node's addresses at which node ports answer. Where all do there is none.
const nodePortIPs = "nodeport-ips"

// filledBy are the fields of upstream's proxier that remember such elements.
var filledBy = []string{"clusterIPs", "serviceIPs", "firewallIPs", "noEndpointServices", "noEndpointNodePorts", "serviceNodePorts", "hairpinConnections"}

// fills finds what a proxier fills. Where that cannot be, elements come back with the hourly full sync only, as upstream does it.
func (b *nftables) fills(ctx context.Context, p *upstreamnft.Proxier, t nfttable.Table) {
	b.filled = append(b.filled, filled{table: t, name: nodePortIPs, written: b.written[t]})
	for _, field := range filledBy {
		name, err := unexported.Field[string](p, []string{field, "containerName"})
		var elements *map[string]string
		if err == nil {
			elements, err = unexported.Field[map[string]string](p, []string{field, "elements"})
		}
		if err != nil {
			klog.FromContext(ctx).Info("What another program takes out of the Service proxy's sets is not noticed before everything is written anew, within the hour", "err", err)
			return
		}
		b.filled = append(b.filled, filled{table: t, name: *name, elements: elements, written: b.written[t]})
	}
}

// learn counts after a full sync. Another program may have changed something between the writing and the counting: what differs from what is remembered has to do so twice, and nobody else may
// have written anything meanwhile.
func (f *filled) learn() {
	if f.elements == nil && f.written != nil && f.written.rules != nil {
		f.more, f.learned = f.written.nodePortIPs, f.written.nodePortIPs > 0
		return
	}
	have, err := nfttable.CountElements(f.table, f.name)
	if err != nil {
		return
	}
	more := have - f.remembered()
	switch alone := f.written == nil || f.written.alone(); {
	case f.elements == nil && !f.learned, f.elements != nil && more == 0, alone && more == f.counted:
		f.more = more
	}
	f.counted, f.learned = more, true
}

func (f *filled) remembered() int {
	if f.elements == nil {
		return 0
	}
	return len(*f.elements)
}

func (f *filled) intact() (bool, error) {
	if f.elements == nil && !f.learned {
		return true, nil // nobody knows
	}
	have, err := nfttable.CountElements(f.table, f.name)
	return have == f.remembered()+f.more, err
}
