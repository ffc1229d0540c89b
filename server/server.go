// SPDX-License-Identifier: Apache-2.0

// Package server is one server of a cluster: the store, the API server, and the parts that run only on the leader.
//
// It owns the order of start and stop, the folder of the server, and the loops that run for a term of leadership. Only
// one process at a time may use the folder, and no program older than its content. It never runs pods: the agent does,
// and uses only the files of AgentCredentials.
//
// New prepares the directory, the ports and the keys, and then wires the parts, each with those that were made before
// it. Package handle has what exists only while the server runs. Three parts get a function for one that is made after
// them: the API server's port asks the roster for failover targets, gossip reports a suspect to the judge of a term,
// and the virtual addresses renew the certificate, whose names they are.
//
// Its goroutines: one for each part of parts.go that runs beside the others, most of them asleep; while the store
// waits, the explanation of the wait and the search for another server; the store's socket. Run waits for all.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/content"
	"github.com/coracle-k8s/coracle/internal/alpnmux"
	"github.com/coracle-k8s/coracle/internal/certend"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/supervise"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/raftstore/upstream"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/gatewayuse"
	"github.com/coracle-k8s/coracle/server/gossipmember"
	"github.com/coracle-k8s/coracle/server/handle"
	"github.com/coracle-k8s/coracle/server/leading"
	"github.com/coracle-k8s/coracle/server/liveness"
	"github.com/coracle-k8s/coracle/server/localcreds"
	"github.com/coracle-k8s/coracle/server/localfailover"
	"github.com/coracle-k8s/coracle/server/netbackend"
	"github.com/coracle-k8s/coracle/server/nodemembers"
	"github.com/coracle-k8s/coracle/server/peertls"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/server/snapshots"
	"github.com/coracle-k8s/coracle/server/starting"
	"github.com/coracle-k8s/coracle/server/storefiles"
	"github.com/coracle-k8s/coracle/server/storeusage"
	"github.com/coracle-k8s/coracle/server/tunnels"
	"github.com/coracle-k8s/coracle/server/virtualip"
	"github.com/coracle-k8s/coracle/server/webconsole"
)

const (
	// encryptionPoll is how often the API server checks whether its encryption keys have changed. With upstream's
	// minute a rotation would take several minutes.
	encryptionPoll = 10 * time.Second
	// closeTimeout limits the time to close the store.
	closeTimeout = 30 * time.Second
)

// Server is one server of a cluster. New prepares it and Run runs it.
type Server struct {
	// Content is this machine's part in sharing the content of images. It is nil where that is disabled.
	Content *content.Machine

	o             Options
	log           *slog.Logger
	data          *datadir.Dir
	port          *alpnmux.Mux
	listener      net.Listener            // for connections to the API server's port that no other route takes
	localFailover *localfailover.Listener // the same listener; it makes this machine's programs fail over
	starting      *starting.Starting
	pki           *pki.PKI
	encryption    string            // the API server's configuration of encryption
	peers         *peertls.Identity // for connections to the other servers
	store         handle.Store
	api           handle.API
	// roster knows the cluster's servers and nodes.
	roster *roster.Roster
	local  *localcreds.Credentials
	tokens *secrets.Tokens
	// revoked refuses the revoked nodes at all of this server's ports.
	revoked nodecreds.Guard
	// admission admits machines to the cluster.
	admission *admission.Admission
	gossip    *gossipmember.Member
	snapshots *snapshots.Keeper
	vips      *virtualip.Addresses
	// backend is this server's copy of the cluster's network back end.
	backend *netbackend.Setting
	// tunnels are the connections that nodes keep open.
	tunnels *tunnels.Table
	// judge decides which nodes are dead while this server leads.
	judge atomic.Pointer[liveness.NodeMonitor]
	// gatewayUse says whether the cluster has objects of the Gateway API. It is set when the API server is made.
	gatewayUse atomic.Pointer[gatewayuse.Use]
	console    *webconsole.Console
	apiServer  atomic.Pointer[apiserver.Server] // set while it runs
	serving    chan struct{}                    // closed when the API server accepts requests
	ready      chan struct{}                    // closed when it is ready and the cluster's own objects exist
	board      board
}

// board has a line for each part in a status report. Its fields may be nil.
type board struct{ certificates, store, api, leader, manifests, snapshots *status.Part }

// New prepares a server, and wires its parts. A New that fails on its options, the data directory or a port changes
// nothing.
func New(ctx context.Context, o Options) (*Server, error) {
	o.setDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	s := &Server{o: o, log: o.Logger, serving: make(chan struct{}), ready: make(chan struct{})}
	s.board = board{
		certificates: o.Board.Part("certificates"), store: o.Board.Part("store"), api: o.Board.Part("API server"),
		leader: o.Board.Part("controllers and scheduler"),
	}
	if o.ManifestsDir != "" {
		s.board.manifests = o.Board.Part("manifests")
	}
	s.board.snapshots = o.Board.Part("snapshots")
	if o.Cluster.Disabled.Has(clusterconfig.PartLocalStorage) {
		o.Board.Part(leading.LocalStorageLine).Set(status.Disabled, "")
	}
	err := s.prepare(ctx)
	if err == nil {
		err = s.wire()
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	controller.EncryptionConfigFileChangePollDuration = encryptionPoll
	return s, nil
}

// prepare locks the data directory, opens the ports, and then reads and makes files, the keys last.
func (s *Server) prepare(ctx context.Context) (err error) {
	o := &s.o
	if s.data, err = datadir.Open(o.dataDir()); err != nil {
		return err
	}
	if err := errors.Join(s.data.ClearReset(), storefiles.Tidy(o.ServerDir), storefiles.Tidy(o.StoreDir)); err != nil {
		s.log.Warn("the remains of an earlier restore could not be removed", "error", err)
	}
	l, err := listen(ctx, o.BindAddress.AsSlice(), o.HTTPSPort)
	if err != nil {
		return err
	}
	s.port = alpnmux.New(alpnmux.Options{Listener: l, Waiting: l.Table, Logger: o.Logger})
	s.localFailover = localfailover.New(localfailover.Options{Listener: s.port.Default(),
		Servers: func() []string { return s.Levels().withoutOlder(s.roster.LeaderFirstAddresses()) },
		Bound:   localcreds.Bound(o.BindAddress.AsSlice()), Logger: s.log.With("part", "nodes")})
	s.listener = s.localFailover
	if s.console, err = s.newConsole(ctx); err != nil {
		return err
	}
	if s.gossip, err = s.newGossipMember(ctx); err != nil {
		return err
	}
	if s.vips, err = s.newVIPs(); err != nil {
		return err
	}
	if s.backend, err = netbackend.New(netbackend.Options{
		Dir: o.ServerDir, Configured: o.Cluster.Backend(), Flag: o.GivenBackend, Board: o.Board,
		Logger: s.log.With("part", "network back end"),
	}); err != nil {
		return err
	}
	return s.makeKeys(ctx)
}

// Close releases the ports and the data directory of a server that is not going to be run.
func (s *Server) Close() error {
	s.console.Close()
	err := s.gossip.Close()
	if s.port != nil {
		if closeErr := s.port.Close(); closeErr != nil && !errors.Is(closeErr, net.ErrClosed) {
			err = errors.Join(err, fmt.Errorf("closing the API server's port: %w", closeErr))
		}
	}
	if s.data != nil {
		err = errors.Join(err, s.data.Close())
	}
	return err
}

// AgentCredentials makes the credentials of a node on this machine and renews them while the server runs. A second call
// with other addresses updates the certificate.
func (s *Server) AgentCredentials(nodeName string, nodeIPs []netip.Addr) (nodecreds.Files, error) {
	return s.local.Node(nodeName, netIPs(nodeIPs))
}

// SnapshotsHandler returns the handler for snapshots on the admin socket.
func (s *Server) SnapshotsHandler() http.Handler { return s.snapshots.Handler() }

// Roster returns this server's record of the cluster's machines.
func (s *Server) Roster() *roster.Roster { return s.roster }

// Gossip returns this server as a member of the gossip.
func (s *Server) Gossip() *gossipmember.Member { return s.gossip }

// FailedOver returns a channel that is closed when another server's API serves this machine's programs because this
// server's store waits. It may never be closed.
func (s *Server) FailedOver() <-chan struct{} { return s.starting.FailedOver() }

// Serving returns a channel that is closed when the API server accepts requests. The API server may not be ready, and
// the cluster's own objects may be missing.
func (s *Server) Serving() <-chan struct{} { return s.serving }

// APIConfigs returns configurations for this server's API that need no network. There are none while the API does not
// run.
func (s *Server) APIConfigs() []*rest.Config {
	if api := s.apiServer.Load(); api != nil {
		return []*rest.Config{api.LoopbackConfig()}
	}
	return nil
}

// Ready returns a channel that is closed when the API server is ready and the cluster's own objects exist.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx is done. It then stops the loops of a leader, the API server after its last requests, and the
// store, in this order, and returns. It may be called once.
func (s *Server) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.data.RecordVersion(); err != nil {
		return fmt.Errorf("recording this version in the data directory: %w", err)
	}
	s.vips.ClearRedirects()
	// The API server and the loops need the store and the certificates until they have stopped. So these end after them
	// and not with ctx.
	background := supervise.NewGroup(context.WithoutCancel(ctx), s.o.Board, s.log)
	defer background.End()
	outlasting := background.Context()
	s.showCertificates(nil)
	defer serveMetrics(certend.Collector(s.pki.Certificates), s.log)()
	defer serveMetrics(connlimit.Metrics{}, s.log)()
	background.Go(func(ctx context.Context) { s.pki.Run(ctx, s.showCertificates) })
	background.Go(func(ctx context.Context) { s.gossip.Run(ctx, s.pki, s.roster) })
	if s.Content != nil {
		defer serveMetrics(&s.Content.Counters, s.log)()
		background.Quiet("content", func(ctx context.Context) error { return s.Content.Run(ctx, s.port.Route(content.ALPN)) })
	}
	defer s.localFailover.End()
	background.Go(s.starting.BeginWhenSlow)
	background.Go(s.drainNodes)

	store, others, err := s.openStore(ctx)
	if err != nil {
		s.board.store.Set(status.Failed, err.Error())
		return err
	}
	defer func() {
		closing, done := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer done()
		if closeErr := store.Close(closing); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("closing the store: %w", closeErr))
		}
		s.board.store.Set(status.Stopped, "")
	}()
	defer serveMetrics(store.Collector(), s.log)()
	defer serveMetrics(s.snapshots, s.log)()
	// The socket is served before the store is ready: operators query through it the state of a server without a
	// majority.
	stopSocket, err := serveStoreSocket(outlasting, s.o.StoreSocket, store, s.log)
	if err != nil {
		return err
	}
	defer stopSocket()
	if err := s.waitStore(ctx, store, others); err != nil {
		s.board.store.Set(status.Failed, err.Error())
		return err
	}
	var keys *secrets.EncryptionKeys
	err = s.starting.RetryUntilLeader(ctx, func() (err error) {
		keys, err = secrets.PullEncryptionKeys(ctx, store.Client().Client, store.Drain, s.o.folders(), s.data.ServerID(), s.log)
		return err
	})
	if err != nil {
		s.board.store.Set(status.Failed, err.Error())
		return err
	}
	if err = s.tokens.Open(store.Client().KV); err == nil {
		err = s.starting.RetryUntilLeader(ctx, func() error {
			_, err := s.tokens.Pull(ctx) // before a machine is admitted with a replaced token
			return err
		})
	}
	if err != nil {
		s.board.store.Set(status.Failed, err.Error())
		return err
	}
	background.Go(func(ctx context.Context) { s.tokens.Run(ctx, store.Client().Watcher) })
	background.Go(s.roster.PublishName)
	defer s.admission.Serve(outlasting)()
	background.Go(s.serveNodes)
	background.Go(s.roster.SyncPeers)
	scheduling, stopScheduling := context.WithCancel(ctx)
	defer stopScheduling()
	background.Go(func(context.Context) { s.snapshots.Run(scheduling) })
	return s.runAPI(ctx, outlasting, store, keys)
}

// showCertificates writes the result of the last check of the certificates to the status, and which authorities end.
func (s *Server) showCertificates(err error) {
	words := s.pki.Ending()
	if err != nil {
		words = strings.TrimPrefix(words+". Some certificates could not be renewed, the present ones stay in use: "+err.Error(), ". ")
	}
	if words != "" {
		s.board.certificates.Set(status.Degraded, words)
		return
	}
	s.board.certificates.Set(status.Running, "")
}

// openStore opens the store and installs it under upstream's storage layer. It also returns the addresses at which
// other servers may be.
func (s *Server) openStore(ctx context.Context) (*raftstore.Store, []string, error) {
	s.board.store.Set(status.Starting, "")
	others, err := roster.ReadPeerAddresses(s.o.ServerDir)
	if err != nil {
		return nil, nil, err
	}
	others = append(others, s.o.Join...)
	store, err := raftstore.Open(ctx, raftstore.Options{
		Dir:    s.o.StoreDir,
		NodeID: s.data.ServerID(),
		// A store of other authorities is refused: no certificate would be trusted.
		ClusterID: token.Hash(s.pki.Root()),
		Network:   s.peers.Network(s.peerAddress(), s.port.Route(peertls.Protocol)),
		Join:      others,
		Others:    s.gossip.Servers,
		Level:     s.o.Level,
		OnLevel:   s.data.RecordLevel,
		Logger:    s.log.With("part", "store"),

		ClockTolerance: pki.Backdate, Wall: s.o.Clock.Now,
		Version: s.o.Version, Hostname: s.o.Node.Name,
		Share: func() string { return secrets.KeysShare(s.o.CredDir, s.log) }, Admit: s.admitMember, Renew: s.o.Renew,
		MaxMembers: admission.MaxServers, // admission refuses earlier, unless several servers join at once
	})
	if err != nil {
		return nil, nil, fmt.Errorf("opening the store in %s: %w", s.o.StoreDir, err)
	}
	if err := s.pki.RecordRoot(); err != nil {
		s.log.Warn("the first certificate of the authority server-ca could not be recorded, and it cannot be renewed before it is; the next "+
			"start tries again", "error", err)
	}
	s.store.SetOpened(store)
	s.board.store.SetCheck(func() string {
		if reason := store.Health().JoinRefused(); reason != "" {
			return "the cluster does not admit this server; it asks again: " + strings.TrimPrefix(reason, "raftstore: ")
		}
		return status.RefusalProblem(string(store.Health().Refusing()))
	})
	upstream.Install(store.Client)
	return store, others, nil
}

// waitStore waits until the store answers: upstream would end the process if the store did not.
func (s *Server) waitStore(ctx context.Context, store *raftstore.Store, others []string) error {
	waiting, ready := context.WithCancel(ctx)
	known := func() []string { return slices.Concat(s.gossip.Servers(), others) }
	var meanwhile sync.WaitGroup
	meanwhile.Go(func() { s.starting.ExplainWait(waiting, known, store.Health().Removed) })
	if former, err := roster.ReadPeerAddresses(s.o.ServerDir); err == nil && len(former) > 0 { // a joining one has no node yet
		meanwhile.Go(func() {
			s.starting.FindFailoverTarget(waiting, store.Health(), func() []string { return s.Levels().withoutOlder(known()) })
		})
	}
	err := store.WaitReady(ctx)
	ready()
	meanwhile.Wait()
	if err != nil {
		return fmt.Errorf("waiting for the store: %w", err)
	}
	s.store.SetReady()
	s.board.store.Set(status.Running, "")
	return nil
}

func (s *Server) newAPI(ctx context.Context, store *raftstore.Store, events *storeusage.Events) (*apiserver.Server, error) {
	configDir := filepath.Join(s.o.CredDir, "apiserver")
	if err := os.MkdirAll(configDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for the API server's configuration: %w", err)
	}
	options := s.apiServerOptions(configDir)
	options.Fence = store
	options.Await = func(ctx context.Context) error { // only a leader can confirm that the store works
		return s.starting.RetryUntilLeader(ctx, func() error {
			_, err := store.Client().KV.Get(ctx, "/registry", clientv3.WithCountOnly())
			return err
		})
	}
	options.Dial, options.ForUser = s.tunnels.DialContext, tunnels.ForUser
	options.Admission = &apiserver.AdmissionOptions{
		Networks: s.o.reserved(), ServerLabel: roster.RoleLabel, Certified: s.roster.CertifiedAddresses,
		Servers: s.roster.ReservedAddresses, JustJoined: s.roster.JustJoined, Own: s.o.ownNode(),
	}
	options.Events = events
	options.Status, options.Clocks = status.JSONHandler(s.serverReport), status.JSONHandler(s.roster.Clocks)
	options.Console = status.JSONHandler(s.console.Setting)
	options.MetricsPart = s.o.Board.Part("metrics API")
	options.MetricsHistory = &apiserver.MetricsHistory{
		Server: s.o.Node.Name, CAFile: s.pki.CAFile(pki.ServerCA), ServerName: localcreds.EveryServer,
		Leader: func() (string, bool) { return leaderOf(store.Cluster().Members()) },
	}
	var live roster.LiveServers
	options.EndpointAddresses = func() (now apiserver.ServersOfService) {
		term := store.Term() // read first: after a change of leader the store refuses this term
		now.Ready, now.Unready = live.Addresses(term, store.Cluster().Members(), time.Now())
		now.Mark = func(ctx context.Context) context.Context { return raftstore.WithTerm(ctx, term) }
		return now
	}
	var use *gatewayuse.Use
	err := s.starting.RetryUntilLeader(ctx, func() (err error) {
		use, err = gatewayuse.New(ctx, store.Client().KV, store.Client().Watcher)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.gatewayUse.Store(use)
	if !s.o.Cluster.Disabled.Has(clusterconfig.PartGateway) {
		options.GatewayUse = use
	}
	api, err := apiserver.New(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("starting the API server: %w", err)
	}
	s.roster.FollowNodes(api.Nodes())
	s.tunnels.Follow(tunnels.OwnerByNodes(api.Nodes()))
	return api, nil
}

// runAPI runs the API server and the loops of a leader.
func (s *Server) runAPI(ctx, outlasting context.Context, store *raftstore.Store, keys *secrets.EncryptionKeys) error {
	s.board.api.Set(status.Starting, "")
	events := storeusage.NewEvents(store.View, store.Health().Quota, s.o.Clock.Now)
	defer serveMetrics(events.Collector(), s.log)()
	api, err := s.newAPI(ctx, store, events)
	if err != nil {
		s.board.api.Set(status.Failed, err.Error())
		return err
	}
	loops, stopLoops := context.WithCancel(ctx)
	defer stopLoops()
	serving, leadership := supervise.NewGroup(outlasting, s.o.Board, s.log), store.Leadership()
	defer serving.End()
	serving.Go(func(ctx context.Context) { s.vips.Run(ctx, api, vipStore{store, store.Cluster()}, leadership) })
	s.apiServer.Store(api)
	defer s.apiServer.Store(nil)
	close(s.serving)                // connections before Run accepts wait at the port
	apiEnded := make(chan error, 1) // capacity 1: its goroutine ends even if this function does not receive any more
	serving.Go(func(ctx context.Context) {
		apiEnded <- api.Run(ctx)
		stopLoops() // without an API server they cannot work
	})
	serving.Go(s.gatewayUse.Load().Run)
	for _, run := range []func(context.Context, *rest.Config){
		keys.Run, s.followBackend, s.serveConsole, s.console.SyncService,
	} {
		serving.Go(func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-api.Ready():
				run(ctx, api.LoopbackConfig())
			}
		})
	}
	leadErr := s.lead(loops, api, store)
	if store.Cluster().TransferBeforeStop() {
		s.vips.SleepUntilMoved()
	}
	serving.Stop(nil)
	apiErr := <-apiEnded
	s.board.api.Set(status.Stopped, "")
	if ctx.Err() == nil && apiErr == nil && leadErr == nil {
		apiErr = errors.New("the API server exited unexpectedly")
	}
	return errors.Join(leadErr, apiErr)
}

// lead waits for the API server, then runs the loops of a leader whenever this server leads, until ctx is done. No loop
// runs any more when it returns.
func (s *Server) lead(ctx context.Context, api *apiserver.Server, store *raftstore.Store) error {
	select {
	case <-ctx.Done():
		return nil
	case <-api.Ready():
	}
	s.board.api.Set(status.Running, "")
	s.starting.Serves()
	if err := s.api.Begin(api.LoopbackConfig()); err != nil {
		return err
	}

	var role *nodemembers.Role
	if !s.o.DisableAgent {
		var err error
		if role, err = nodemembers.NewRole(api.LoopbackConfig(), s.o.Node.Name, s.data.ServerID(), store.Cluster(), s.log); err != nil {
			return err
		}
	}
	g := supervise.NewGroup(ctx, s.o.Board, s.log)
	// The objects are applied beside the loops and not before them: a first pod need not wait for them, and also a
	// server that does not lead applies them.
	g.Essential(nil, func(ctx context.Context) error {
		return s.bootstrapObjects(ctx, api.LoopbackConfig())
	})
	if role != nil {
		g.Go(role.Run)
	}
	g.Essential(nil, func(ctx context.Context) error { return s.gossip.Follow(ctx, api.LoopbackConfig()) })
	g.Essential(nil, func(ctx context.Context) error {
		if !s.newLeader(api, store).Follow(ctx, g.Stop, store.Leadership()) {
			return errors.New("the store closed unexpectedly; its last lines in the log say why")
		}
		return nil
	})
	return g.Wait()
}

// followBackend follows the cluster's network back end until ctx is done.
func (s *Server) followBackend(ctx context.Context, api *rest.Config) {
	if err := s.backend.Run(ctx, api); err != nil {
		s.log.Error("changes of the cluster's network back end are not followed: this server may start with the previous one", "error", err)
	}
}

func (s *Server) apiServerOptions(configDir string) apiserver.Options {
	serving, kubelet, proxy := s.local.Serving().Path, s.pki.KubeletClient().Path, s.pki.FrontProxy().Path
	return apiserver.Options{
		APIServer: s.o.APIServer, Cluster: s.o.Cluster, ServerSettings: s.o.ServerSettings,
		BindAddress: s.o.BindAddress.AsSlice(), Port: s.o.HTTPSPort, Listener: s.listener, AdvertiseAddress: s.o.AdvertiseAddress.AsSlice(),
		TLSCertFile: serving, TLSKeyFile: serving,
		ClientCAFile:                 s.pki.CAFile(pki.ClientCA),
		ServiceAccountKeyFiles:       []string{s.pki.ServiceAccountKeyFile()},
		ServiceAccountSigningKeyFile: s.pki.ServiceAccountKeyFile(),
		ServiceAccountIssuer:         "https://kubernetes.default.svc." + s.o.Cluster.Domain,
		KubeletClientCertFile:        kubelet, KubeletClientKeyFile: kubelet,
		KubeletCAFile:             s.pki.CAFile(pki.KubeletCA),
		RequestHeaderCAFile:       s.pki.CAFile(pki.RequestHeaderCA),
		RequestHeaderAllowedNames: []string{pki.FrontProxyUser},
		ProxyClientCertFile:       proxy, ProxyClientKeyFile: proxy,
		Guard:                &s.revoked,
		EncryptionConfigFile: s.encryption,
		ConfigDir:            configDir,
		AnonymousHealthOnly:  true,
		AuditLog:             filepath.Join(s.o.ServerDir, "logs", "audit.log"),
		Logger:               s.log.With("part", "API server"),
	}
}
