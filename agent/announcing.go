// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/agent/lbspeaker"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/vip"
)

// speaker returns the options of the speaker, which announces addresses of the load balancer's pool. The nftables proxy
// assigns those addresses to no interface. IPVS assigns them to an interface of its own, and then the kernel of every
// node would reply for all of them: RestrictARP prevents that.
func (o Options) speaker(client kubernetes.Interface, settings clustersettings.Follower, backend string,
	report func(loadbalancer.Conflicts, loadbalancer.Proven)) lbspeaker.Options {
	a := lbspeaker.Options{
		Client: client, Settings: settings, NodeName: o.Name, Links: linksWithoutServices, Announce: vip.Announce, Now: vip.Now,
		Probe: vip.Probe, Routers: vip.Routers, Report: report,
		Part: o.statusPart(partSpeaker), Logger: o.Logger,
	}
	if backend == nft.ServicesByIPVS {
		a.RestrictARP = restrictARP
	}
	return a
}

// linksWithoutServices returns the machine's interfaces, except the one that has the addresses of Services.
func linksWithoutServices() ([]vip.Link, error) {
	links, err := vip.Links()
	return slices.DeleteFunc(links, func(l vip.Link) bool { return l.Name == nft.IPVSDevice }), err
}

// restrictARP makes the kernel reply on an interface for the addresses of that interface alone, and name no others
// there (arp_ignore and arp_announce in ip-sysctl).
func restrictARP(device string) error {
	for name, value := range map[string]string{"arp_ignore": "1", "arp_announce": "2"} {
		path := "/proc/sys/net/ipv4/conf/" + device + "/" + name
		if have, err := os.ReadFile(path); err == nil && len(have) > 0 && string(have[0]) >= value {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("preventing the kernel from answering ARP for the addresses of Services: %w", err)
		}
	}
	return nil
}

// findings is what the speaker found out about addresses of Services in the network: the values of two of the Node's
// annotations.
type findings struct{ conflicts, proven string }

// publishFindings writes two annotations of the Node: which addresses of Services other machines use, so that the
// Services' owners can read that, and which ones are proven to be unused.
func publishFindings(ctx context.Context, o Options, found <-chan findings) error {
	nodes, err := nodeClient(o.KubeletKubeconfig)
	if err != nil {
		return err
	}
	var want findings // empty at first, which removes the annotations of an earlier run
	for {
		var again <-chan time.Time
		for name, value := range map[string]string{loadbalancer.ConflictsAnnotation: want.conflicts,
			loadbalancer.ProvenAnnotation: want.proven} {
			if err := annotate(ctx, nodes, o.Name, name, value); err != nil {
				again = time.After(networksRetry)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case want = <-found:
		case <-again:
		}
	}
}
