// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// underlayCheck is the interval of checks of another interface's addresses.
const underlayCheck = 10 * time.Second

// syncUnderlay writes to the Node at which addresses other nodes reach its pods, where these are not the node's own:
// the settings name another interface (--network-iface) or ask for it (--network-external-ip). It writes them again
// when the Node has others. Otherwise it removes once what an earlier setting has left.
func syncUnderlay(ctx context.Context, o Options) error {
	if o.Cluster.NetworkBackend == clusterconfig.NetworkNone {
		return nil
	}
	nodes, err := nodeClient(o.KubeletKubeconfig)
	if err != nil {
		return err
	}
	return o.publishUnderlay(ctx, nodes)
}

func (o Options) publishUnderlay(ctx context.Context, nodes corev1client.NodeInterface) error {
	written, writtenAt, complaint := "", time.Time{}, ""
	for {
		pause := underlayCheck
		want, err := o.underlay()
		if err == nil && (writtenAt.IsZero() || want != written || time.Since(writtenAt) >= addressCheck) {
			if err = annotate(ctx, nodes, o.Name, clusterconfig.UnderlayAnnotation, want); err == nil {
				written, writtenAt = want, time.Now()
			} else {
				pause = nodePoll // at a first start the kubelet has not registered the node yet
			}
		}
		if err != nil && ctx.Err() == nil && err.Error() != complaint {
			complaint = err.Error()
			o.Logger.Debug("agent: the address at which other nodes reach this one's pods is not published yet", "error", err)
		}
		switch {
		case err != nil || o.NetworkInterface != "":
		case want == "":
			return nil
		default:
			pause = addressCheck // the addresses cannot change while the process runs
		}
		if !timers.Sleep(ctx, pause) {
			return nil
		}
	}
}

// underlay returns the annotation's value. It is empty where other nodes use the node's own addresses.
func (o Options) underlay() (string, error) {
	addrs := o.IPs
	if o.NetworkInterface != "" {
		var err error
		if addrs, err = cni.UnderlayAddresses(o.IPs, o.NetworkInterface); err != nil {
			return "", fmt.Errorf("finding the interface to other nodes: %w", err)
		}
	}
	addrs = replaceFamilies(addrs, o.networkExternal())
	if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !slices.Contains(o.IPs, a) }) {
		return "", nil
	}
	return strings.Join(convert.Slice(addrs, netip.Addr.String), ","), nil
}

// networkExternal returns the addresses at which packets for this node's pods arrive, where the machine's interfaces do
// not have them.
func (o Options) networkExternal() []netip.Addr {
	if !o.NetworkExternal {
		return nil
	}
	return o.ExternalIPs
}

// replaceFamilies replaces each address of addrs by the address in by that has the same family, if there is one. An
// address in by whose family addrs lacks is left out: the machine could not receive its packets.
func replaceFamilies(addrs, by []netip.Addr) []netip.Addr {
	out := slices.Clone(addrs)
	for i, a := range out {
		if k := slices.IndexFunc(by, func(b netip.Addr) bool { return b.Is4() == a.Is4() }); k >= 0 {
			out[i] = by[k]
		}
	}
	return out
}
