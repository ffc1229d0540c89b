// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/content"
	"github.com/coracle-k8s/coracle/controllers/acme"
	"github.com/coracle-k8s/coracle/controllers/helmcharts"
	"github.com/coracle-k8s/coracle/controllers/ingress"
	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/server/bootstrap"
	"github.com/coracle-k8s/coracle/server/encryption"
	"github.com/coracle-k8s/coracle/server/gossipmember"
	"github.com/coracle-k8s/coracle/server/leading"
	"github.com/coracle-k8s/coracle/server/liveness"
	"github.com/coracle-k8s/coracle/server/localcreds"
	"github.com/coracle-k8s/coracle/server/manifests"
	"github.com/coracle-k8s/coracle/server/peertls"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/server/serviceability"
	"github.com/coracle-k8s/coracle/server/snapshots"
	"github.com/coracle-k8s/coracle/server/starting"
	"github.com/coracle-k8s/coracle/server/tunnels"
	"github.com/coracle-k8s/coracle/server/virtualip"
	"github.com/coracle-k8s/coracle/server/webconsole"
)

// The functions here make the parts of a server from the options. A part gets functions for what it needs of other
// parts. No part knows the server.

// wire makes the parts that need the keys, each after those that it gets functions of. It then writes this machine's
// credentials.
func (s *Server) wire() error {
	ips, err := s.o.servingIPs()
	if err != nil {
		return err
	}
	s.local = localcreds.New(localcreds.Options{
		PKI: s.pki, BindAddress: s.o.BindAddress.AsSlice(), Port: s.openPort(), VIPs: s.vips.IPs,
		Names: pki.APIServerNames{NodeName: s.o.Node.Name, Domain: s.o.Cluster.Domain, IPs: ips, ExtraSANs: s.o.TLSSANs},
		Kubeconfigs: []localcreds.Kubeconfig{
			{Path: s.o.Kubeconfig.Path, Mode: s.o.Kubeconfig.Mode, GID: s.o.Kubeconfig.GID},
			{Path: s.o.AdminKubeconfig, Mode: 0o600, Local: true},
		},
		NodeDir: filepath.Join(s.o.AgentDir, "cred"),
	})
	s.starting = starting.New(starting.Options{
		Begin: s.localFailover.Begin, PKI: s.pki, ServerName: localcreds.EveryServer,
		Address: s.peerAddress, Port: s.o.HTTPSPort, Store: &s.store,
		Question: func() protocol.Call {
			return protocol.Call{Token: s.tokens.Now().Server, Request: protocol.Request{
				Role: token.RoleServer, Program: s.o.Version, Time: s.o.Clock.Now(),
				Reach: &protocol.Reach{Address: s.peerAddress(), ServerID: s.data.ServerID()},
			}}
		},
		Now: s.o.Clock.Now, Part: s.board.store, Logger: s.log,
	})
	s.roster = roster.New(roster.Options{
		Dir: s.o.ServerDir, ServerID: s.data.ServerID(), Name: s.o.Node.Name, JoinAddresses: s.o.Join,
		Networks: s.o.reserved(),
		Store:    &s.store, API: s.api.Client,
		FailoverAddresses: s.starting.FailoverTargets, Machines: s.gossip.Members,
		VirtualAddresses: s.vips.Current, ServingAddresses: s.local.Serving().IPs,
		Clock: s.o.Clock, Logger: s.log,
	})
	s.admission = s.newAdmission()
	s.snapshots = s.newSnapshots()
	if s.tunnels, err = s.newTunnels(); err != nil {
		return err
	}
	if !s.o.Cluster.Disabled.Has(clusterconfig.PartContent) {
		s.Content = content.NewMachine(content.MachineOptions{
			Node: s.o.Node.Name, Members: s.gossip.Members, Trust: s.gossip.Trust(s.pki), Nodes: s.tunnels,
			Rate: s.o.Node.ContentRate, Logger: s.log.With("part", "content"),
		})
	}
	return s.local.Ensure()
}

// vipStore is the store with the methods that package virtualip needs.
type vipStore struct {
	*raftstore.Store
	*raftstore.Cluster
}

func (s *Server) newGossipMember(ctx context.Context) (*gossipmember.Member, error) {
	return gossipmember.New(ctx, gossipmember.Options{
		Dir: s.o.ServerDir, Name: s.o.Node.Name, Version: s.o.Version, Level: s.o.Level,
		Listen: s.listener.Addr().String(), Streams: s.port.Route(gossip.ALPN), Address: s.peerAddress(), NodeIPs: netIPs(s.o.Node.IPs),
		Join: s.o.Join, Links: s.o.Links, Reach: s.o.Reach,
		Suspect: func(node string) { // only the leader has a judge; it checks the node at once
			if j := s.judge.Load(); j != nil {
				j.Suspect(node)
			}
		},
		Refuses: s.revoked.Refuses,
		Part:    s.o.Board.Part("gossip"),
		Now:     s.o.Clock.Now, Logger: s.log.With("part", "gossip"),
	})
}

func (s *Server) newConsole(ctx context.Context) (*webconsole.Console, error) {
	o := &s.o
	return webconsole.New(ctx, webconsole.Options{
		Listen: o.ConsoleListen, Disabled: o.Cluster.Disabled.Has(clusterconfig.PartConsole),
		APIServerArgs: o.APIServerArgs, OIDC: o.ConsoleOIDC,
		Server: o.Node.Name, Node: !o.DisableAgent,
		NodeIPs: netIPs(o.Node.IPs), AdvertiseAddress: o.AdvertiseAddress.AsSlice(), ServiceCIDRs: o.Cluster.ServiceCIDRs,
		Program: o.HelmProgram, Ended: o.WorkEnded, Part: o.Board.Part("console"), Logger: s.log,
	})
}

// serveConsole serves the console to browsers until ctx is done.
func (s *Server) serveConsole(ctx context.Context, _ *rest.Config) {
	s.console.Serve(ctx, s.pki.Serving, &rest.Config{Host: s.local.URL(), TLSClientConfig: rest.TLSClientConfig{
		CAData: s.pki.CAPEM(pki.ServerCA), ServerName: s.local.ServerName(),
		NextProtos: []string{"http/1.1"}, // HTTP/2 keeps 4 MB for each stream that a tab does not read
	}})
}

func (s *Server) newVIPs() (*virtualip.Addresses, error) {
	return virtualip.New(virtualip.Options{
		Dir: s.o.ServerDir, Configured: s.o.VIPs, Interface: s.o.VIPInterface,
		BindAddress: s.o.BindAddress.AsSlice(), Port: s.openPort(), Reserved: s.o.reserved(),
		Redirect: s.o.Redirect, Use: func() error { return s.local.Ensure() }, Machines: s.gossip.Members,
		Board: s.o.Board, Logger: s.log.With("part", "vip"),
	})
}

// leaderOf returns the address of the member that leads, empty for none, and whether it is this server.
func leaderOf(members []raftstore.Member) (address string, self bool) {
	for _, m := range members {
		if m.Leader {
			return m.Address, m.Self
		}
	}
	return "", false
}

// admitMember is called by the leader's store before a server becomes a member. The returned function is called when
// that server is a member or has failed. It saves the members' addresses before it lets the encryption keys be replaced
// again.
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

// makeKeys creates all missing secrets that need no other part: CAs, tokens, certificates and encryption keys.
func (s *Server) makeKeys(ctx context.Context) (err error) {
	s.pki, err = pki.Open(pki.Options{Dir: s.o.TLSDir, Established: s.data.Established, BuildTime: s.o.BuildTime,
		Clock: s.o.Clock, Logger: s.log})
	if err != nil {
		return err
	}
	s.encryption, err = encryption.Ensure(ctx, encryption.Options{
		Dir: s.o.CredDir, Resources: s.o.EncryptResources, Established: s.data.Established, Logger: s.log})
	if err != nil {
		return err
	}
	s.tokens, err = secrets.NewTokens(secrets.TokenOptions{
		Folders: s.o.folders(), ServerID: s.data.ServerID(), Root: s.pki.Root(),
		Server: s.o.Token, Agent: s.o.AgentToken, Guard: &s.revoked, Clock: s.o.Clock, Logger: s.log,
	})
	if err != nil {
		return err
	}
	s.peers, err = peertls.New(peertls.Options{CA: s.pki.CAPEM(pki.PeerCA), Name: pki.PeerName})
	if err != nil {
		return err
	}
	peer := s.pki.Peer(s.data.ServerID())
	peer.Use = s.peers.Use
	for _, l := range []pki.Leaf{s.pki.KubeletClient(), s.pki.FrontProxy(), peer} {
		if err := s.pki.Ensure(l); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) newAdmission() *admission.Admission {
	return admission.New(admission.Options{
		Listen: func() net.Listener { return s.port.Route(protocol.Protocol) }, API: s.api.Client, PKI: s.pki, Tokens: s.tokens.Now,
		Revoked: s.revoked.Revoked, Serving: s.local.Serving(),
		Cluster: s.o.Cluster, Networks: s.o.reserved(), NodeName: s.o.Node.Name,
		ServerSettings: s.o.ServerSettings, Flags: s.o.SharedFlags(), Folders: s.o.folders(),
		Members: s.store.ReadyMembers, Servers: s.roster.ServerAddresses, GossipKeys: s.gossip.Keys,
		VirtualIPs: s.vips.ClusterAddresses, Backend: s.backend.ForJoining, Dial: s.peers.Dial,
		Level: s.Levels().Cluster,
		Clock: s.o.Clock, Logger: s.log.With("part", "joining"),
	})
}

// newLeader returns the parts that run while this server leads. The store and the API server must exist.
func (s *Server) newLeader(api *apiserver.Server, store *raftstore.Store) *leading.Leader {
	o := &s.o
	loops := o.controllerOptions(&signing{
		cert: s.pki.CAFile(pki.ClientCA), key: s.pki.CAKeyFile(pki.ClientCA),
		root: s.pki.CAFile(pki.ServerCA), serviceAccount: s.pki.ServiceAccountKeyFile(),
	})
	loops.StoreQuota = store.Health().Quota()
	var history func(context.Context)
	if o.MetricsHistory && !o.Cluster.Disabled.Has(clusterconfig.PartMetrics) {
		history = api.RecordMetricsHistory
	}
	return leading.New(leading.Options{
		API: api, Cluster: o.Cluster, Scheduler: o.schedulerOptions(), Controllers: loops,
		Volumes:   tunnels.Volumes{Table: s.tunnels, Own: o.ownNode(), Folders: o.Volumes},
		Manifests: manifests.Options{Dir: o.ManifestsDir, ServerID: s.data.ServerID(), Part: s.board.manifests},
		Liveness:  liveness.Options{Own: o.runsNode, Contact: s.tunnels.Contact, Check: s.newFinder().Check},
		Judge:     &s.judge, Members: store.Cluster(),
		ServiceLB: servicelb.Options{
			Disabled: o.Cluster.Disabled.Has(clusterconfig.PartServiceLB), Pool: o.LBPool, Networks: o.reserved(),
			Barred: s.roster.ReservedAddresses, JoinedAddresses: s.roster.JoinedAddresses,
		},
		Port: o.HTTPSPort, LBReserved: o.LBReserved, NodePortRange: o.NodePortRange,
		Ingress: ingress.Options{Disabled: o.Cluster.Disabled.Has(clusterconfig.PartIngress), Rules: o.Ingress, Built: o.BuildTime},
		ACME: acme.Options{
			Email: o.ACME.Email, Directory: o.ACME.Directory, Roots: o.ACME.Roots,
			Dial: s.tunnels.DialContext, Built: o.BuildTime, UserAgent: "coracle/" + o.Version,
		},
		MetricsHistory: history,
		OwnsAddress:    s.roster.OwnsAddress, GatewayUse: s.gatewayUse.Load(),
		Helm: helmcharts.Options{Folders: o.ChartFolders, Server: o.Node.Name,
			Disabled: o.Cluster.Disabled.Has(clusterconfig.PartHelm)},
		HelmEngine: helmcharts.ChildEngine{Program: o.HelmProgram, Dir: o.RunDir},
		Part:       s.board.leader, Board: o.Board, Logger: s.log,
	})
}

// drainNodes drains the connections of nodes while this server cannot serve them, until ctx is done.
func (s *Server) drainNodes(ctx context.Context) {
	serviceability.Run(ctx, serviceability.Options{
		Store: func() serviceability.Store {
			if store := s.store.Opened(); store != nil {
				return store.Health()
			}
			return nil
		},
		FailoverTargets: s.starting.FailoverTargets, SetFailedOver: s.starting.SetFailedOver,
		Drain: s.tunnels.Drain, FailOver: s.localFailover.FailOver,
		SetReadiness: s.tunnels.SetReadiness, Logger: s.log,
	})
}

// bootstrapObjects applies the cluster's own objects and retries until that succeeds.
func (s *Server) bootstrapObjects(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	bootstrap.Run(ctx, func() bootstrap.Options {
		return bootstrap.Options{
			Client: client, ClusterDNS: s.o.Cluster.DNS.AsSlice(),
			Disabled:       s.o.Cluster.Disabled,
			NetworkBackend: s.o.Cluster.Backend(), LastBackend: s.backend.Last(),
		}
	}, s.board.api, func() { close(s.ready) }, s.log)
	return nil
}

// SnapshotFiles returns the files of a snapshot, by their path below the server's folder. Optional files may be
// missing.
func SnapshotFiles() (required, optional []string) {
	required, optional = secrets.CommonFiles()
	return append(required, admission.JoinedFile), optional
}

func (s *Server) newSnapshots() *snapshots.Keeper {
	o := s.o.Snapshots
	return snapshots.NewKeeper(snapshots.Options{
		Dir: o.Dir, Retention: o.Retention, Cluster: token.Hash(s.pki.Root()), Server: s.o.Node.Name, Version: s.o.Version,
		BeginBackup: s.store.BeginBackup,
		Contents:    s.o.snapshotContents, Schedule: o.Schedule,
		Key: func() (snapshots.Key, error) {
			if o.KeyFile != "" {
				return snapshots.KeyOfFile(o.KeyFile)
			}
			return snapshots.KeyOfToken(s.tokens.Now().Server.String())
		},
		Ordinal: func() snapshots.Ordinal { return snapshots.OrdinalAmong(s.store.ReadyMembers(), s.data.ServerID()) },
		S3: snapshots.S3Settings{
			On: o.S3, Values: o.S3Settings, Secret: o.S3Secret, API: s.api.Client,
		}.For,
		Part: s.board.snapshots, Clock: s.o.Clock, Logger: s.log.With("part", "snapshots"),
	})
}

// snapshotContents reads the files that a joining server would get, too, and which bundles this machine has taken.
func (o *Options) snapshotContents() (snapshots.Contents, error) {
	files, err := o.folders().Read()
	if err == nil {
		files[admission.JoinedFile], err = json.Marshal(&admission.Joined{Settings: o.Cluster, ServerSettings: o.ServerSettings})
	}
	accepted, acceptedErr := bundle.AcceptedBy(slots.Below(o.DataDir))
	if acceptedErr != nil { // the cluster's data is worth more
		o.Logger.Warn("snapshots will not have which bundles this machine has taken", "error", acceptedErr)
	}
	return snapshots.Contents{Files: files, Accepted: &accepted}, err
}
