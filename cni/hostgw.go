// SPDX-License-Identifier: Apache-2.0

package cni

import "fmt"

// hostGateway uses each node as the gateway to its pods. Packets are not changed, and so nodes have to be on one
// segment: a router between them has no routes to pods.
type hostGateway struct{}

func (hostGateway) overhead(bool) int { return 0 }

func (hostGateway) port() int { return 0 }

func (hostGateway) rules(*ruleset, pathInput) {}

func (hostGateway) desired(in pathInput) (out []desiredObject, unreachable []unreachablePeer) {
	for _, p := range in.peers {
		for _, c := range p.PodCIDRs {
			own, ok := sameFamily(in.podCIDRs, c.Addr())
			if !ok {
				continue
			}
			via, ok := p.underlay(c.Addr().Is4())
			device := in.underlay.deviceOf(via.Is4())
			switch {
			case !ok:
				unreachable = append(unreachable, unreachablePeer{p.Name, fmt.Sprintf("it has no address of the family of its pods' network %s", c)})
			case !in.underlay.onLink(via):
				unreachable = append(unreachable, unreachablePeer{p.Name, fmt.Sprintf("its address %s is in no network of %s: host-gw is for nodes "+
					"of one segment, vxlan for others", via, device)})
			case in.underlay.barePackets:
				unreachable = append(unreachable, unreachablePeer{p.Name, fmt.Sprintf("packets on %s do not say which node is the next one, as on a "+
					"VPN's interface: host-gw is for nodes of one segment, vxlan for others", device)})
			default:
				out = append(out, desiredObject{object: route{dst: c, device: device, src: gateway(own), via: via}, peer: p.Name})
			}
		}
	}
	return out, unreachable
}
