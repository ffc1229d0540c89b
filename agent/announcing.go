// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"slices"

	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/agent/announcer"
	"github.com/coracle-k8s/coracle/internal/servicerules"
	"github.com/coracle-k8s/coracle/internal/vip"
)

// announcer answers for addresses of the load balancer's pool. The nftables proxy needs them on no interface; IPVS has them on one of its own, and then
// the kernel of every node would answer for all of them.
func (o Options) announcer(client kubernetes.Interface) announcer.Options {
	a := announcer.Options{
		Client: client, NodeName: o.NodeName, Links: linksWithoutServices, Announce: vip.Announce, Now: vip.Now,
		Part: o.part("load balancer addresses"), Logger: o.Logger,
	}
	if o.ProxyMode == servicerules.IPVS {
		a.KeepSilent = keepSilent
	}
	return a
}

// linksWithoutServices are the machine's interfaces but the one that carries the addresses of Services.
func linksWithoutServices() ([]vip.Link, error) {
	links, err := vip.Links()
	return slices.DeleteFunc(links, func(l vip.Link) bool { return l.Name == servicerules.IPVSDevice }), err
}

// keepSilent has the kernel answer on an interface for the addresses of that interface alone, and name no others there (arp_ignore and arp_announce in
// ip-sysctl).
func keepSilent(device string) error {
	for name, value := range map[string]string{"arp_ignore": "1", "arp_announce": "2"} {
		path := "/proc/sys/net/ipv4/conf/" + device + "/" + name
		if have, err := os.ReadFile(path); err == nil && len(have) > 0 && string(have[0]) >= value {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("keeping the kernel from answering for the addresses of Services: %w", err)
		}
	}
	return nil
}
