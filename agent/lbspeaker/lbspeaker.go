// SPDX-License-Identifier: Apache-2.0

// Package lbspeaker announces, on this node, the addresses of the load balancer's pool that the cluster assigned to it.
//
// The leading server assigns them in one ConfigMap (internal/loadbalancer). Before each announcement this node confirms
// that it still is the holder, by reading the ConfigMap from the store. A confirmation is valid for loadbalancer.Lease,
// and a new holder waits longer than that. So two nodes never announce the same address, whatever fails among nodes,
// servers and the network between them. The package owns the packet sockets (vip). The Service proxy handles the
// packets to the addresses.
//
// Its goroutines: one that follows the ConfigMap of holders, asleep; one for each address that this node holds, and two
// of vip.
package lbspeaker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/vip"
)

const (
	// checkInterval is how often the machine's interfaces are checked while this node is a holder.
	checkInterval = 10 * time.Second
	// probeAgain is how long after another machine replied for a new address the network is probed again.
	probeAgain = 15 * time.Second
	// conflictShown is how long another machine's use of an address is reported after it was last observed.
	conflictShown = time.Minute
)

// All fields of Options are required, except Part, Logger, Probe, Routers, Report and RestrictARP.
type Options struct {
	// Client may read the ConfigMap.
	Client kubernetes.Interface
	// Settings receives each change of the ConfigMap with the address pools.
	Settings clustersettings.Follower
	NodeName string
	// Links lists the machine's interfaces. Announce announces an address. Both are vip's, and others in tests.
	Links    func() ([]vip.Link, error)
	Announce func(context.Context, vip.Announcement) error
	Now      func() vip.Moment
	// Probe asks the network which machine uses an address. nil means no probe.
	Probe func(context.Context, vip.Interface, netip.Addr) error
	// Routers returns the addresses of this machine's routers, which it never announces. nil means none.
	Routers func() ([]netip.Addr, error)
	// Report, when set, is called each time that its arguments change. They are the addresses assigned to this node
	// that other machines use, and the addresses that this node has proven to be unused and the record does not list as
	// proven yet. It must not block.
	Report func(loadbalancer.Conflicts, loadbalancer.Proven)
	// RestrictARP, when set, is called for each interface in whose network an assigned address is, whichever node is
	// the holder: with IPVS the kernel has the address itself, and must not reply for it there.
	RestrictARP func(device string) error
	Part        *status.Part
	Logger      *slog.Logger
}

// Speaker announces this node's addresses.
type Speaker struct {
	o       Options
	changed timers.Signal // the settings or findings have changed

	mu     sync.Mutex // guards asked and record, the last confirmation by the store
	asked  vip.Moment
	record loadbalancer.Holders

	findings findings
}

// New returns a speaker that announces nothing until Run is called. It fails if an option is missing.
func New(o Options) (*Speaker, error) {
	if o.Client == nil || o.Settings == nil || o.NodeName == "" || o.Links == nil || o.Announce == nil || o.Now == nil {
		return nil, errors.New("lbspeaker: an option is missing")
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Probe == nil {
		o.Probe = func(context.Context, vip.Interface, netip.Addr) error { return nil }
	}
	if o.Routers == nil {
		o.Routers = func() ([]netip.Addr, error) { return nil, nil }
	}
	return &Speaker{o: o, changed: timers.NewSignal(), findings: findings{conflictOf: map[netip.Addr]conflict{},
		proven: loadbalancer.Proven{}, reported: ";"}}, nil
}

// running is an address that this node announces, on one of its interfaces.
type running struct {
	holder loadbalancer.Holder
	iface  vip.Interface
	stop   func() // ends the announcement, and waits for its end
}

// Run announces until ctx is done. It sends nothing after it has returned.
func (s *Speaker) Run(ctx context.Context) error {
	var settingsData atomic.Pointer[clustersettings.Data]
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() {
		s.o.Settings.Follow(ctx, loadbalancer.ConfigMap, func(d clustersettings.Data) {
			settingsData.Store(&d)
			s.changed.Send()
		})
	})
	now := map[netip.Addr]running{}
	defer func() {
		for _, r := range now {
			r.stop()
		}
	}()
	for {
		var record loadbalancer.Holders
		if d := settingsData.Load(); d != nil {
			var err error
			if record, err = loadbalancer.Read(*d); err != nil {
				s.o.Logger.Warn("load balancer: the ConfigMap with the holders of addresses cannot be read", "error", err)
			}
		}
		s.follow(ctx, now, record)
		var poll <-chan time.Time
		if slices.ContainsFunc(slices.Collect(maps.Values(record)), func(h loadbalancer.Holder) bool { return h.Node == s.o.NodeName }) {
			poll = time.After(checkInterval)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		case <-poll:
		}
	}
}

// follow starts and stops announcements so that they match the record.
func (s *Speaker) follow(ctx context.Context, now map[netip.Addr]running, record loadbalancer.Holders) {
	var trouble []string
	places := map[netip.Addr]vip.Interface{}
	var links []vip.Link
	var routers []netip.Addr
	for _, address := range slices.SortedFunc(maps.Keys(record), netip.Addr.Compare) {
		mine := record[address].Node == s.o.NodeName
		if !mine && s.o.RestrictARP == nil {
			continue
		}
		if links == nil {
			var err error
			if links, err = s.o.Links(); err != nil {
				trouble = append(trouble, err.Error())
				break
			}
			if routers, err = s.o.Routers(); err != nil {
				trouble = append(trouble, err.Error())
				break
			}
		}
		iface, err := vip.Find(links, address, "")
		if err == nil && slices.Contains(routers, address) { // it would receive packets for other networks
			err = fmt.Errorf("%s is a router's address: the routes of this machine lead through it. Leave it out of the load balancer's pool",
				address)
		}
		if err == nil && s.o.RestrictARP != nil && address.Is4() {
			err = s.o.RestrictARP(iface.Name)
		}
		switch {
		case !mine:
		case err != nil:
			trouble = append(trouble, err.Error())
		default:
			places[address] = iface
		}
	}
	for address, r := range now {
		if iface, ok := places[address]; !ok || iface != r.iface || !record[address].Same(r.holder) {
			r.stop()
			delete(now, address)
		}
	}
	for address, iface := range places {
		if _, ok := now[address]; !ok {
			now[address] = s.start(ctx, address, record[address], iface)
		}
	}
	used, proven := s.findings.conflicts(record, slices.Collect(maps.Keys(now)), time.Now())
	if words := used.String() + ";" + proven.String(); s.o.Report != nil && s.findings.reported != words {
		s.findings.reported = words
		s.o.Report(used, proven)
	}
	for _, address := range slices.SortedFunc(maps.Keys(used), netip.Addr.Compare) {
		trouble = append(trouble, fmt.Sprintf("%s is used by another machine, with the Ethernet address %s", address, used[address]))
	}
	s.showStatus(now, trouble)
}

func (s *Speaker) showStatus(now map[netip.Addr]running, trouble []string) {
	switch {
	case len(trouble) > 0:
		s.o.Part.Set(status.Degraded, strings.Join(trouble, "; "))
	case len(now) == 0:
		s.o.Part.Set(status.Running, "")
	default:
		s.o.Part.Set(status.Running, fmt.Sprintf("this node announces %d addresses of Services", len(now)))
	}
}

// start announces an address once an earlier holder has certainly stopped.
func (s *Speaker) start(ctx context.Context, address netip.Addr, h loadbalancer.Holder, iface vip.Interface) running {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !timers.Sleep(ctx, loadbalancer.Wait) {
			return
		}
		if h.New && !s.prove(ctx, address, h, iface) {
			return
		}
		s.o.Logger.Info("load balancer: this node announces an address", "address", address, "interface", iface.Name)
		for ctx.Err() == nil {
			err := s.o.Announce(ctx, vip.Announcement{
				Address: address, Interface: iface, Logger: s.o.Logger,
				Confirm:  func(ctx context.Context) (vip.Moment, error) { return s.confirm(ctx, address, h) },
				Conflict: func(other net.HardwareAddr) { s.noteConflict(address, other) },
			})
			if err == nil {
				return
			}
			s.o.Logger.Warn("load balancer: an address is no longer announced; retrying", "address", address, "error", err)
			timers.Sleep(ctx, time.Second) // the cause may last
		}
	}()
	return running{holder: h, iface: iface, stop: func() {
		cancel()
		<-done
	}}
}

// confirm returns until when this node may announce. The time counts from before the request to the store. One response
// is valid for all addresses.
func (s *Speaker) confirm(ctx context.Context, address netip.Addr, h loadbalancer.Holder) (vip.Moment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.record == nil || s.o.Now() >= s.asked.After(loadbalancer.Lease/2) {
		s.record = nil
		asked := s.o.Now()
		m, err := s.o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, loadbalancer.ConfigMap, metav1.GetOptions{})
		if err != nil {
			return 0, err
		}
		record, err := loadbalancer.Read(m.Data)
		if err != nil {
			return 0, err
		}
		s.asked, s.record = asked, record
	}
	if !s.record[address].Same(h) {
		return 0, fmt.Errorf("the node %s is now the holder", s.record[address].Node)
	}
	return s.asked.After(loadbalancer.Lease), nil
}
