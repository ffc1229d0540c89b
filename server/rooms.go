// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers/localpath"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/server/departures"
	"github.com/coracle-k8s/coracle/server/gossipmember"
	"github.com/coracle-k8s/coracle/server/nodemembers"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/server/starting"
	"github.com/coracle-k8s/coracle/server/tunnels"
	"github.com/coracle-k8s/coracle/server/virtualip"
)

// Each function here makes one part of a server from the options, and gives it as functions what it needs of the other
// parts. No part knows the server.

// membersOf returns what lists the members of a store that may not be there yet.
func membersOf(store *atomic.Pointer[raftstore.Store]) func() []raftstore.Member {
	return func() []raftstore.Member {
		if now := store.Load(); now != nil {
			return now.Cluster().Members()
		}
		return nil
	}
}

func (s *Server) newRoster() *roster.Roster {
	return roster.New(roster.Options{
		Dir: s.o.ServerDir, ServerID: s.data.ServerID(), Name: s.o.NodeName, Join: s.o.Join, Networks: s.o.reserved(),
		Members: membersOf(&s.opened), Answered: membersOf(&s.store),
		Leader: func() string {
			if store := s.opened.Load(); store != nil {
				return store.Health().OtherLeader()
			}
			return ""
		},
		Survey: func(ctx context.Context) []raftstore.MemberState { return s.opened.Load().Cluster().Survey(ctx) },
		ReachedBy: func(ctx context.Context, states []raftstore.MemberState) map[string][]string {
			return s.opened.Load().Cluster().ReachedBy(ctx, states)
		},
		KV: func() clientv3.KV {
			if store := s.opened.Load(); store != nil {
				return store.Client().KV
			}
			return nil
		},
		Failover: func() []string { return s.starting.Elsewhere() }, Machines: func() []gossip.Info { return s.gossip.Members() }, Virtual: func() []netip.Addr { return s.vips.Current() },
		Serving: func() []net.IP { return s.files.serving.IPs },
		API:     func() (kubernetes.Interface, error) { return s.admission.API() },
		Clock:   s.o.Clock, Logger: s.log,
	})
}

func (s *Server) newStarting() *starting.Starting {
	return starting.New(starting.Options{
		Begin: s.localFailover.Begin, PKI: func() *pki.PKI { return s.pki }, ServerName: everyServer,
		Address: s.peerAddress, Port: s.o.Port, Opened: &s.opened, Answered: &s.store,
		Question: func() protocol.Question {
			return protocol.Question{Token: s.tokens.Now().Server, Request: protocol.Request{
				Role: token.RoleServer, Program: s.o.Version, Time: s.o.Clock.Now(),
				Reach: &protocol.Reach{Address: s.peerAddress(), ServerID: s.data.ServerID()},
			}}
		},
		Now: s.o.Clock.Now, Part: s.board.store, Logger: s.log,
	})
}

// vipStore is the store as the virtual addresses need it.
type vipStore struct {
	*raftstore.Store
	*raftstore.Cluster
}

// nodeClaims is what the API server keeps nodes from saying of themselves.
func (s *Server) nodeClaims() *apiserver.NodeClaims {
	return &apiserver.NodeClaims{
		Networks: s.o.reserved(), ServerLabel: roster.RoleLabel, Certified: s.roster.Certified,
		Servers: s.roster.Reserved, JustJoined: s.roster.JustJoined, Own: s.o.ownNode(),
	}
}

func (s *Server) newGossipMember(ctx context.Context) (*gossipmember.Member, error) {
	o := gossipmember.Options{
		Dir: s.o.ServerDir, Name: s.o.NodeName, Version: s.o.Version,
		Listen: s.listener.Addr().String(), Streams: s.port.Route(gossip.ALPN), Address: s.peerAddress(), NodeIPs: s.o.NodeIPs,
		Join: s.o.Join, Links: s.o.Links, Reach: s.o.Reach,
		PKI: func() *pki.PKI { return s.pki }, Stores: s.roster.Stores, Leaderless: s.roster.Leaderless, MostMachines: s.roster.MostMachines,
		Suspect: s.Suspect, Now: s.o.Clock.Now, Logger: s.log.With("part", "gossip"),
	}
	if s.o.Board != nil {
		o.Part = s.o.Board.Part("gossip")
	}
	return gossipmember.New(ctx, o)
}

func (s *Server) newVIPs() (*virtualip.Keeper, error) {
	return virtualip.New(virtualip.Options{
		Dir: s.o.ServerDir, Own: s.o.VIPs, Interface: s.o.VIPInterface, BindAddress: s.o.BindAddress, Port: s.openPort(), Reserved: s.o.reserved(),
		Redirect: s.o.Redirect, Use: s.useVIPs, CheckFree: s.roster.CheckFree, MachineAt: s.roster.MachineAt,
		Board: s.o.Board, Logger: s.log.With("part", "vip"),
	})
}

// admitMember is called by the leader's store for a server that is to become a member. The other servers' addresses are
// kept before it is one.
func (s *Server) admitMember(share string) (release func(), err error) {
	still, err := secrets.AdmitMember(s.o.CredDir, share, s.log)
	if err != nil {
		return nil, err
	}
	return func() {
		defer still()
		s.roster.SavePeers()
	}, nil
}

func (s *Server) newAdmission() *admission.Admission {
	return admission.New(admission.Options{
		Listen: func() net.Listener { return s.port.Route(protocol.Protocol) }, PKI: s.pki, Tokens: s.tokens.Now, Serving: s.files.serving,
		Cluster: s.o.Cluster, Networks: s.o.reserved(), NodeName: s.o.NodeName,
		NodePortRange: s.o.NodePortRange, EncryptResources: s.o.EncryptResources, Folders: s.o.folders(),
		Members: membersOf(&s.store), Servers: s.roster.Servers, GossipKeys: s.gossip.Keys, VirtualIPs: s.vips.Kept, Backend: s.backend.ForJoining, Dial: s.peers.Dial,
		Clock: s.o.Clock, Logger: s.log.With("part", "joining"),
	})
}

// localStorageLine is its line in the status.
const localStorageLine = "local storage"

// newLocalStorage makes what gives claims a directory on a node, for a term.
func (s *Server) newLocalStorage(ctx context.Context, t *term.Term) (*localpath.Volumes, error) {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(t.Config), "local-storage"))
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	o := localpath.Options{
		Client: client, NodeInformer: t.Informers.Core().V1().Nodes(), VolumeInformer: t.Informers.Core().V1().PersistentVolumes(),
		Nodes:    tunnels.Volumes{Table: s.tunnels, Own: s.o.ownNode(), Folders: s.o.Volumes},
		Refusals: s.refusals, Context: ctx, Logger: s.log.With("part", "local storage"),
	}
	if s.o.Board != nil {
		o.Part = s.o.Board.Part(localStorageLine)
	}
	return localpath.New(o)
}

func (s *Server) registrationGCPart(ctx context.Context, t *term.Term) error {
	return admission.RunGC(ctx, t, s.log.With("part", "joining"))
}

func (s *Server) membersPart(ctx context.Context, t *term.Term) error {
	return nodemembers.Run(ctx, t, s.store.Load().Cluster(), s.log.With("part", "servers' nodes"))
}

func (s *Server) departuresPart(ctx context.Context, t *term.Term) error {
	return departures.Run(ctx, t, s.log.With("part", "nodes that leave"))
}
