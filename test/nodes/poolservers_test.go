//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

// poolServers is three servers with a node each, and a pool with an address for each of them, which a Service has.
type poolServers struct {
	*testing.T
	site      *harness.Site
	servers   []*harness.Server
	addresses []string
	watches   map[string]*answers
}

// newPoolServers makes them, with machines of one family.
func newPoolServers(t *testing.T, f families) *poolServers {
	t.Helper()
	p := &poolServers{T: t, site: harness.NewSite(t), watches: map[string]*answers{}}
	pool := poolFirst + "-10.77.0.202"
	p.addresses = []string{poolFirst, poolLast, "10.77.0.202"}
	if f == six {
		f.outside(t, p.site)
		pool = "fd77::200-fd77::202"
		p.addresses = []string{"fd77::200", "fd77::201", "fd77::202"}
	}
	for i := range 3 {
		machine := p.site.NewMachine()
		f.prepare(machine)
		if i == 0 {
			p.servers = append(p.servers, machine.NewServer(append(f.networks(), "--load-balancer-pool", pool)...))
		} else {
			p.servers = append(p.servers, machine.NewPeer(p.servers[0]))
		}
		p.servers[i].AddBoxImage()
		p.servers[i].StartAPI()
	}
	p.site.Heal() // it unpacks nft, so that this is no part of what is measured
	p.whole("at first")
	k := p.servers[0].In(t)
	k.Apply(spreadService)
	harness.Eventually(t, harness.Soon, "the pods are ready", func() error { return endpoints(p.servers[0], 2) })
	for i, a := range p.addresses {
		name := fmt.Sprint("balanced-", i)
		k.Apply(balancer(name, "d", 443, ""))
		k.Await(harness.Soon, "service/"+name, ingressPath, a)
		p.watches[a] = watchAnswers(t, p.site, a)
	}
	for _, a := range p.addresses {
		harness.Eventually(t, harness.Soon, "a machine answers for "+a, func() error {
			if p.watches[a].now() == 0 {
				return errors.New("no answer")
			}
			return nil
		})
	}
	return p
}

// whole waits until all servers vote and all nodes are ready.
func (p *poolServers) whole(when string) {
	p.Helper()
	for _, s := range p.servers {
		s.WaitAPI()
		harness.Eventually(p, harness.Longer, when+" the nodes are ready", func() error { return isReady(s, s, "True") })
		harness.Eventually(p, harness.Longer, when+" all three vote", func() error {
			out, err := s.Run(s.Coracle(), "store", "status", "--data-dir", s.DataDir)
			if err == nil && strings.Count(out, " voter ") < 2 {
				err = fmt.Errorf("not three voters:\n%s", out)
			}
			return err
		})
	}
}

// holds is the server that leads, or else one that does not, and an address for which it answers.
func (p *poolServers) holds(leads bool) (holder *harness.Server, address string, err error) {
	var leader *harness.Server
	for _, s := range p.servers {
		if out, _ := s.Run(s.Coracle(), "store", "status", "--data-dir", s.DataDir); strings.Contains(out, "this server leads") {
			leader = s
		}
	}
	if leader == nil {
		return nil, "", errors.New("no server leads")
	}
	for _, a := range p.addresses {
		name, err := holderOf(leader, a)
		if err != nil {
			return nil, "", err
		}
		for _, s := range p.servers {
			if s.NodeName() == name && (s == leader) == leads && p.watches[a].now() == s.Number {
				return s, a, nil
			}
		}
	}
	return nil, "", fmt.Errorf("%s leads, and there is no such holder", leader.NodeName())
}

// poolFault is what happens to a server that answers for an address.
type poolFault struct {
	name     string
	leads    bool // the server
	do, undo func(*harness.Server)
}

// moves: the Service answers at the address after the fault, by another node, and all is well when it is over.
func (p *poolServers) moves(fault poolFault) {
	p.Helper()
	what := fault.name
	if fault.leads {
		what += ", and it led"
	}
	var victim *harness.Server
	var address string
	harness.Eventually(p, harness.Longer, what+": there is such a holder", func() (err error) {
		victim, address, err = p.holds(fault.leads)
		return err
	})
	harness.Eventually(p, harness.Soon, what+": the Service answers before", func() error { return asks(p.site, address) })
	began := time.Now()
	fault.do(victim)
	eventually(p.T, began, what+": another node answers for the address", func() error {
		if p.watches[address].now() == victim.Number {
			return fmt.Errorf("still machine %d", victim.Number)
		}
		return nil
	})
	eventually(p.T, began, what+": the Service answers there", func() error { return asks(p.site, address) })
	fault.undo(victim)
	p.whole(what + ", and back:")
}

func (p *poolServers) oneAtATime() {
	p.Helper()
	for _, w := range p.watches {
		w.oneAtATime(p.T, p.servers)
	}
}

func (p *poolServers) killed() poolFault {
	return poolFault{"killed", true, (*harness.Server).Kill, (*harness.Server).Start}
}

func (p *poolServers) cutOff() poolFault {
	return poolFault{"cut off", true, func(s *harness.Server) { p.site.CutOff(s.Machine) }, func(*harness.Server) { p.site.Heal() }}
}

func (p *poolServers) poweredOff(leads bool) poolFault {
	return poolFault{"powered off", leads, func(s *harness.Server) { s.PowerOff() }, func(s *harness.Server) {
		s.PowerOn()
		s.Start()
	}}
}

// TestLeaderHoldsPoolAddress: the node that answers for an address is the server that leads, too, so that who decides
// on another holder has to be elected first.
func TestLeaderHoldsPoolAddress(t *testing.T) {
	harness.ByHand(t)
	p := newPoolServers(t, four)
	p.moves(p.killed())
	p.moves(p.cutOff())
	p.oneAtATime()
}

// TestPoolAddressOfIPv6: the same where there is no IPv4, so that nodes answer by neighbour discovery, and with
// machines that lose their power.
func TestPoolAddressOfIPv6(t *testing.T) {
	harness.ByHand(t)
	p := newPoolServers(t, six)
	p.moves(p.poweredOff(true))
	p.moves(p.poweredOff(false))
	if whole {
		p.moves(p.killed())
		p.moves(p.cutOff())
	}
	p.oneAtATime()
}
