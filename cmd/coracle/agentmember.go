// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/agent/balancer"
	"github.com/coracle-k8s/coracle/content"
	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/alpnmux"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/reachability"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/internal/version"
	joiningnode "github.com/coracle-k8s/coracle/joining/node"
	"github.com/coracle-k8s/coracle/server/gossipmember"
)

const (
	// keysAsk is the pause between requests for the gossip keys while these fail or newer keys exist.
	keysAsk = 5 * time.Second
	// aloneAsk is the pause between requests for the keys of a node that knows no other live member. The keys may have
	// been replaced meanwhile.
	aloneAsk = time.Minute
)

// agentPort is an agent's port for other machines. It serves gossip, and relays connections to a server for machines
// that take this one for a server.
type agentPort struct {
	mux     *alpnmux.Mux
	packets net.PacketConn
}

// openAgentPort opens the machine's port, TCP and UDP.
func openAgentPort(ctx context.Context, port int, log *slog.Logger) (*agentPort, error) {
	address := ":" + strconv.Itoa(port)
	taken := func(network string, err error) error {
		return fmt.Errorf("the cluster's %s port %d on this machine cannot be opened: %w. Stop the program that uses it, or choose another port with "+
			"--https-listen-port", network, port, err)
	}
	l, err := connlimit.Listen(ctx, "cluster", "tcp", address, &connlimit.Table{Max: alpnmux.MaxWaiting})
	if err != nil {
		return nil, taken("TCP", err)
	}
	packets, err := new(net.ListenConfig).ListenPacket(ctx, "udp", address)
	if err != nil {
		return nil, errors.Join(taken("UDP", err), l.Close())
	}
	return &agentPort{mux: alpnmux.New(alpnmux.Options{Listener: l, Waiting: l.Table, Logger: log}), packets: packets}, nil
}

func (p *agentPort) close() error {
	err := errors.Join(p.mux.Close(), p.packets.Close())
	if errors.Is(err, net.ErrClosed) {
		return nil // the gossip has closed its listener
	}
	return err
}

// agentMember makes an agent's machine a gossip member.
type agentMember struct {
	c            *config.Agent
	port         *agentPort
	joined       *joiningnode.Node
	servers      *balancer.Balancer
	log          *slog.Logger
	line         *status.Part
	subnets      chan []netip.Prefix // one: only the last value counts, and there is one
	showMembers  func(func() []status.Member)
	showLevel    func(func() *status.Level)
	reach        *reachability.Watch
	level        int // at which this process runs
	current      atomic.Pointer[gossip.Member]
	emptyRounds  int       // number of rounds in a row without a server
	keysReceived time.Time // when a server last sent the keys; zero when none has since this machine started
}

// run is a gossip member until ctx is done. Its failures do not affect the node: the API also reports the servers.
func (a *agentMember) run(ctx context.Context) {
	a.line.Set(status.Starting, "waiting for the gossip key")
	for len(a.joined.GossipKeys().Keys) == 0 && ctx.Err() == nil {
		if err := a.joined.RefreshGossipKeys(ctx); err != nil {
			a.log.Debug("no gossip keys yet", "error", err)
			timers.Sleep(ctx, keysAsk)
		}
	}
	if ctx.Err() != nil {
		return
	}
	member, err := a.member()
	if err == nil {
		a.reach.OnUnreachable(member.ReportUnreachable)
		a.line.Set(status.Running, "")
		members := func() []status.Member { return statusMembers(member.Members()) }
		a.current.Store(member)
		a.showMembers(members)
		a.showLevel(func() *status.Level { return agentLevel(a.level, members()) })
		var beside sync.WaitGroup
		beside.Go(func() { a.follow(ctx, member) })
		err = member.Run(ctx)
		beside.Wait()
	}
	if err != nil {
		a.line.Set(status.Degraded, err.Error()+". This machine learns of servers through the API only")
		a.log.Error("this machine is no longer a member of the gossip", "error", err)
	}
}

func (a *agentMember) member() (*gossip.Member, error) {
	trust, err := a.trust()
	if err != nil {
		return nil, err
	}
	return gossip.New(gossip.Options{
		Name: a.c.Node.Name, Address: netip.AddrPortFrom(a.c.Node.IPs[0], uint16(a.c.Port)),
		Packets: a.port.packets, Streams: gossip.NewStreams(a.port.mux.Route(gossip.ALPN), trust), Keys: a.joined.GossipKeys(),
		Meta: gossip.Meta{Role: gossip.RoleAgent, Addresses: a.c.Node.IPs, Version: version.Get().Coracle,
			Running: uint64(a.level)},
		File: membersFile(a.c), Ask: a.knownServers, Names: []string{a.c.ServerURL.Host}, Lost: a.reachesNoServer,
		Links: config.LocalHost{}.Links, Reach: a.reach, Logger: a.log,
	})
}

// trust returns the certificates by which this machine and others recognise one another.
func (a *agentMember) trust() (gossip.Trust, error) {
	credentials := a.joined.Credentials
	trust := gossip.Trust{Own: func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(credentials.KubeletPair, credentials.KubeletPair)
		return &pair, err
	}}
	var err, err2 error
	trust.ServerCA, err = cert.NewPool(credentials.ServerCAFile)
	trust.ClientCA, err2 = cert.NewPool(credentials.ClientCAFile)
	if err := errors.Join(err, err2); err != nil {
		return trust, fmt.Errorf("reading the cluster's authorities: %w", err)
	}
	return trust, nil
}

// content returns the machine's part in sharing images' content, or nil where that is disabled.
func (a *agentMember) content() (*content.Machine, error) {
	if a.joined.Settings.Disabled.Has(clusterconfig.PartContent) {
		return nil, nil
	}
	trust, err := a.trust()
	if err != nil {
		return nil, err
	}
	return content.NewMachine(content.MachineOptions{
		Node: a.c.Node.Name, Trust: trust, Rate: a.c.Node.ContentRate, Logger: a.log.With("part", "content"),
		Members: func() []gossip.Info {
			if m := a.current.Load(); m != nil {
				return m.Members()
			}
			return nil
		},
	}), nil
}

func membersFile(c *config.Agent) string { return filepath.Join(c.Paths.AgentDir, "members.json") }

// lostRounds is how many rounds in a row have to find no server before the status shows it.
const lostRounds = 4

// reachesNoServer says whether the API is reached through no server. The gossip member calls it in each round in which
// it searches for others.
func (a *agentMember) reachesNoServer() bool {
	if a.servers.Connected() {
		if a.emptyRounds >= lostRounds {
			a.line.Set(status.Running, "")
		}
		a.emptyRounds = 0
		return false
	}
	if a.emptyRounds++; a.emptyRounds >= lostRounds {
		a.line.Set(status.Degraded, noServerHint(a.servers.Servers()))
	}
	return true
}

// noServerHint returns the hint for a machine that finds no server.
func noServerHint(tried []string) string {
	return fmt.Sprintf("no server of the cluster can be reached at its known addresses (%s), and none was found on this machine's networks; "+
		"retrying; pods keep "+
		"running. If the servers' addresses have changed, start coracle once with the address of any machine of the cluster: --server "+
		"https://ADDRESS:6443",
		strings.Join(tried, ", "))
}

func (a *agentMember) knownServers() []netip.AddrPort {
	return convert.Valid(a.servers.Servers(), netip.ParseAddrPort)
}

// follow reports servers that are added or removed to the balancer. It requests the keys when other members have newer
// ones, or when no other member is alive.
func (a *agentMember) follow(ctx context.Context, member *gossip.Member) {
	for ctx.Err() == nil {
		changed := member.MembersChanged()
		members := member.Members()
		a.balance(members)
		pause := aloneAsk
		if a.outdated(members, time.Now()) {
			pause = keysAsk
			if err := a.joined.RefreshGossipKeys(ctx); err != nil {
				a.log.Debug("the gossip keys could not be fetched", "error", err)
			} else if a.keysReceived, err = time.Now(), member.SetKeys(a.joined.GossipKeys()); err != nil {
				a.log.Error("the new gossip keys could not be used", "error", err)
			}
			if isOnlyMember(members) {
				pause = aloneAsk
			}
		}
		select {
		case <-ctx.Done():
		case <-changed:
			if pause == keysAsk { // while the keys are older, each change would cause a request
				timers.Sleep(ctx, time.Second)
			}
		case subnets := <-a.subnets:
			member.Update(func(m *gossip.Meta) { m.PodSubnets = subnets })
		case <-time.After(pause):
		}
	}
}

// outdated says whether other members have newer keys, or may have: a member with only the old keys finds no other
// member. A member that has just joined finds none yet either, but its keys are new.
func (a *agentMember) outdated(members []gossip.Info, now time.Time) bool {
	own := a.joined.GossipKeys().Generation
	return isOnlyMember(members) && now.Sub(a.keysReceived) >= aloneAsk || slices.ContainsFunc(members, func(m gossip.Info) bool {
		return m.State == gossip.Alive && m.Role == gossip.RoleServer && m.KeyGeneration > own
	})
}

func isOnlyMember(members []gossip.Info) bool {
	return !slices.ContainsFunc(members, func(m gossip.Info) bool { return m.State == gossip.Alive && !m.Self })
}

// balance gives the live servers, if there are any, to the balancer. It also reports which machines are no servers.
func (a *agentMember) balance(members []gossip.Info) {
	var servers, agents []string
	for _, m := range members {
		switch {
		case m.State == gossip.Alive && m.Role == gossip.RoleServer:
			servers = append(servers, clusterconfig.Strings(m.API)...)
		case m.Role == gossip.RoleAgent:
			agents = append(agents, m.Address.String())
		}
	}
	a.servers.SetLastResort(agents)
	if len(servers) == 0 {
		return
	}
	if err := a.servers.Set(servers); err != nil {
		a.log.Warn("the list of servers could not be saved; retrying", "error", err)
	}
}

// statusMembers converts the members to the form of coracle status.
func statusMembers(in []gossip.Info) []status.Member {
	out := make([]status.Member, 0, len(in))
	for _, m := range in {
		out = append(out, status.Member{
			Name: m.Name, Role: m.Role.String(), Address: m.Address.String(), Version: m.Version, State: string(m.State), Since: m.Since,
			Self: m.Self, PodSubnets: clusterconfig.Strings(m.PodSubnets), KeyGeneration: m.KeyGeneration,
			Level: int(m.Level), Running: int(m.Running),
		})
	}
	return out
}

// statusContent returns what reports say of the machine's part in sharing images' content; nil where it is disabled.
func statusContent(m *content.Machine) *status.Content {
	if m == nil {
		return nil
	}
	count := func(c *content.Count) status.ContentCount {
		return status.ContentCount{Blobs: c.Blobs.Load(), Bytes: c.Bytes.Load()}
	}
	c := &m.Counters
	return &status.Content{Peers: count(&c.Peers), Outside: count(&c.Outside), Sent: count(&c.Sent), Refused: c.Refused.Load()}
}

func rotateGossipKey(ctx context.Context, client kubernetes.Interface, members func(context.Context) ([]status.Member, error),
	progress func(string)) error {
	return gossipmember.Rotation{Client: client, Members: members, Progress: progress}.Run(ctx)
}
