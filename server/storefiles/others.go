// SPDX-License-Identifier: Apache-2.0

package storefiles

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/server/gossipmember"
	"github.com/coracle-k8s/coracle/server/pki"
)

// askTimeout limits the question to another machine. They are asked at the same time.
const askTimeout = 3 * time.Second

// An Other is another machine of the cluster at which a server may answer: its own, or one that an agent there forwards
// connections to.
type Other struct {
	Name    string // empty if only the gossip knew it
	Address string
	Server  bool // as the store or PEERS says
	// From says which records have the machine: the store, PEERS (the store's note of the other servers), the gossip's
	// last members.
	From []string
	// Answers says that a server of this cluster answered at the address, or that at a server's address something
	// accepts connections without an answer, as a server does that starts or whose disk stalls.
	Answers bool
	// Reply says how the machine was asked, and what came of it.
	Reply string
}

// AskOthers asks all other machines that this stopped server knew whether a server of the cluster answers there, by TLS
// at the cluster's port. It returns them in the order servers first, by address.
func (s *Server) AskOthers(ctx context.Context, plan Plan) []Other {
	others := s.otherMachines(plan)
	var asking sync.WaitGroup
	for i := range others {
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			others[i].Answers, others[i].Reply = s.ask(ctx, others[i])
		})
	}
	asking.Wait()
	return others
}

// otherMachines lists the other machines by all records. A record that cannot be read has none.
func (s *Server) otherMachines(plan Plan) []Other {
	byAddress, own := map[string]*Other{}, ""
	add := func(name, address string, server bool, from string) {
		if _, err := netip.ParseAddrPort(address); err != nil {
			return // the server of a cluster of one has a name there
		}
		o := byAddress[address]
		if o == nil {
			o = &Other{Name: name, Address: address}
			byAddress[address] = o
		}
		o.Server = o.Server || server
		if !slices.Contains(o.From, from) {
			o.From = append(o.From, from)
		}
	}
	for _, m := range plan.Members {
		if m.Self {
			own = m.Address
			continue
		}
		add(m.Name, m.Address, true, "store")
	}
	peers, _ := disk.ReadPeers(s.StoreDir) // a damaged note is as none
	for _, p := range peers {
		add(disk.NodeOf(p.ID), p.Address, true, "PEERS")
	}
	for _, address := range gossip.Known(filepath.Join(s.ServerDir, gossipmember.MembersFile)) {
		add("", address.String(), false, "gossip")
	}
	out := []Other{}
	for address, o := range byAddress {
		if address != own {
			out = append(out, *o)
		}
	}
	slices.SortFunc(out, func(a, b Other) int {
		if a.Server != b.Server {
			if a.Server {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Address, b.Address)
	})
	return out
}

// ask returns whether a server of this cluster answers at a machine's address, and what came of the question.
func (s *Server) ask(ctx context.Context, o Other) (answers bool, reply string) {
	var at time.Time // dates do not count: a wrong clock must not make a server seem gone
	config, err := protocol.ServerTLS(filepath.Join(s.TLSDir, string(pki.ServerCA)+".crt"), "", func() time.Time { return at })
	if err != nil {
		return false, err.Error()
	}
	config.VerifyPeerCertificate = func(chain [][]byte, _ [][]*x509.Certificate) error { // before ServerTLS' check
		leaf, err := x509.ParseCertificate(chain[0])
		if err == nil {
			at = leaf.NotAfter
		}
		return err
	}
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return false, "by TCP: " + err.Error()
	}
	defer raw.Close()
	config.ServerName, _, _ = net.SplitHostPort(o.Address)
	c := tls.Client(raw, config)
	err = c.HandshakeContext(ctx)
	switch {
	case err == nil:
		return true, "by TLS: a server of this cluster runs there, or an agent there reaches one"
	case ctx.Err() != nil && o.Server:
		return true, "by TLS: it accepts connections and does not answer, as a server does that starts or whose disk stalls"
	}
	return false, "by TLS: " + err.Error()
}
