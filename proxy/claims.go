// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/lbports"
)

// claims are the addresses that Services want besides their cluster IPs, each with the Service's ports, and which external IPs are refused because of other
// Services. That of another namespace's load balancer is, with all of its ports, unless the Service's namespace has it too, by a load balancer that gives each some of its
// ports: then if both have a port in common. So is that of an older Service of another namespace that is not refused for this, if both have a port in common. Who may write Services in one namespace could
// otherwise take what is sent to another one's.
//
// There may be many Services with one address and thousands of ports each, so they are not compared with one another: it is kept who has which port at an address
// (site), and a change has only those judged again that have a changed port there and for which it can make a difference.
type claims struct {
	services map[types.NamespacedName]*claimant
	at       map[netip.Addr]*site
}

// claimant is a Service with such addresses. One that is created anew under the same name is another claimant.
type claimant struct {
	key     types.NamespacedName
	created metav1.Time
	ports   []lbports.Port
	claims  map[netip.Addr]*claim
}

// claim is a claimant's, at one address.
type claim struct {
	*claimant
	at netip.Addr
	roles
	refused refusal
}

// roles are how a Service comes to an address: it is among the external IPs of its spec, and a load balancer has written it into its status.
type roles struct{ external, balanced bool }

// refusal says who has what a claimant wants as an external IP; the zero one, that nobody has.
type refusal struct {
	by   *claimant
	port lbports.Port // that both want; the zero one if a load balancer has the whole address
	aged bool         // both want it as an external IP, and the other one is older
}

func (r refusal) String() string {
	switch {
	case r.by == nil:
		return ""
	case r.aged:
		return fmt.Sprintf("is with port %s that of the Service %s, which is older", r.port, r.by.key)
	case r.port != lbports.Port{}:
		return fmt.Sprintf("is with port %s the load balancer address of the Service %s", r.port, r.by.key)
	}
	return fmt.Sprintf("is the load balancer address of the Service %s", r.by.key)
}

func newClaims() claims {
	return claims{services: map[types.NamespacedName]*claimant{}, at: map[netip.Addr]*site{}}
}

// put notes a Service that came, changed or went (svc is nil), and returns the Services that something else is refused to now, or because of somebody else.
func (c claims) put(key types.NamespacedName, svc *corev1.Service) (changed []types.NamespacedName) {
	again := map[*claim]bool{}
	who, wanted := c.services[key], rolesOf(svc)
	if who != nil && (svc == nil || !who.created.Equal(&svc.CreationTimestamp)) {
		c.change(who, nil, nil, again)
		who = nil
	}
	if who == nil && len(wanted) > 0 {
		who = &claimant{key: key, created: svc.CreationTimestamp, claims: map[netip.Addr]*claim{}}
	}
	if who != nil {
		c.change(who, wanted, portsOf(svc), again)
	}
	for cl := range again {
		if now := c.at[cl.at].judge(cl); now != cl.refused {
			cl.refused = now
			changed = append(changed, cl.key)
		}
	}
	return changed
}

// refused says who has an external IP of a Service that was put.
func (c claims) refused(key types.NamespacedName, a netip.Addr) refusal {
	if who := c.services[key]; who != nil {
		return who.claims[a].refused
	}
	return refusal{} // nobody serves it: rolesOf
}

// rolesOf are the addresses that a Service wants besides its cluster IPs. One that no proxy serves, since it has no cluster IP or is another name, keeps nobody from
// them.
func rolesOf(svc *corev1.Service) map[netip.Addr]roles {
	out := map[netip.Addr]roles{}
	if svc != nil && (svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.Type == corev1.ServiceTypeExternalName) {
		return out
	}
	for _, a := range ingressIPs(svc) {
		out[a] = roles{balanced: true}
	}
	for _, a := range externalIPs(svc) {
		out[a] = roles{external: true, balanced: out[a].balanced}
	}
	return out
}

func portsOf(svc *corev1.Service) []lbports.Port {
	out := make([]lbports.Port, len(svc.Spec.Ports))
	for i, p := range svc.Spec.Ports {
		out[i] = lbports.Of(p.Protocol, p.Port)
	}
	return out
}

// change has a claimant want these addresses and ports and no others, and adds the claims for which that may make a difference to again.
func (c claims) change(who *claimant, wanted map[netip.Addr]roles, ports []lbports.Port, again map[*claim]bool) {
	had := who.ports
	gone, come := without(had, ports), without(ports, had)
	who.ports = ports
	for a := range wanted {
		if who.claims[a] == nil {
			who.claims[a] = &claim{claimant: who, at: a}
		}
	}
	moved := func(was, is bool) (leave, enter []lbports.Port) {
		switch {
		case was && is:
			return gone, come
		case was:
			return had, nil
		case is:
			return nil, ports
		}
		return nil, nil
	}
	for a, cl := range who.claims {
		was, is := cl.roles, wanted[a]
		if was == is && len(gone)+len(come) == 0 {
			continue
		}
		if c.at[a] == nil {
			c.at[a] = newSite()
		}
		s := c.at[a]
		s.setRoles(cl, is, again)
		leave, enter := moved(was.external, is.external)
		s.moveExternal(cl, leave, enter, again)
		leave, enter = moved(was.balanced, is.balanced)
		s.moveBalanced(cl, leave, enter, again)
		if is == (roles{}) {
			delete(who.claims, a)
		}
		if len(s.external)+len(s.balanced) == 0 {
			delete(c.at, a)
		}
	}
	if c.services[who.key] = who; len(who.claims) == 0 {
		delete(c.services, who.key)
	}
}

// without are those of the first that are not among the second. The API has no port twice in a Service, and most often one of many has changed.
func without(all, others []lbports.Port) (out []lbports.Port) {
	for len(all) > 0 && len(others) > 0 && all[0] == others[0] {
		all, others = all[1:], others[1:]
	}
	for len(all) > 0 && len(others) > 0 && all[len(all)-1] == others[len(others)-1] {
		all, others = all[:len(all)-1], others[:len(others)-1]
	}
	if len(all) == 0 {
		return nil
	}
	known := make(map[lbports.Port]bool, len(others))
	for _, p := range others {
		known[p] = true
	}
	for _, p := range all {
		if !known[p] {
			out = append(out, p)
		}
	}
	return out
}
