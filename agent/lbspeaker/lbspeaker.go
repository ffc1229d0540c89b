// SPDX-License-Identifier: Apache-2.0

// Package lbspeaker answers, on this node, for the addresses of the load balancer's pool that the cluster has given it.
//
// The server that leads says which those are, in one ConfigMap (internal/loadbalancer). Before each answer this node
// makes sure that it still is the holder, by reading the ConfigMap from the store, which is good for
// loadbalancer.Lease; a new holder is silent for longer than that. So two never answer, whatever happens to nodes,
// servers and the network between them. It owns the packet sockets (vip); what comes in for the addresses is the
// Service proxy's.
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
	// again is how often the machine's interfaces are looked at while this node is a holder.
	again = 10 * time.Second
	// probeAgain is how long after another machine answered for a new address the network is asked again.
	probeAgain = 15 * time.Second
	// conflictShown is for how long it is said that another machine uses an address, after it was heard last.
	conflictShown = time.Minute
)

// Options are all required but Part and Logger.
type Options struct {
	// Client may read the ConfigMap.
	Client kubernetes.Interface
	// Settings follow it.
	Settings clustersettings.Follower
	NodeName string
	// Links lists the machine's interfaces, Announce answers for an address: vip's, and others in tests.
	Links    func() ([]vip.Link, error)
	Announce func(context.Context, vip.Announcement) error
	Now      func() vip.Moment
	// Probe asks the network which machine has an address; nil means no probe.
	Probe func(context.Context, vip.Interface, netip.Addr) error
	// Routers are the addresses through which this machine's routes lead, which it never answers for; nil for none.
	Routers func() ([]netip.Addr, error)
	// Report, when set, is called with the addresses for which this node is to answer and that other machines use, and
	// of those that it has proven and the record does not have as proven yet, each time that changes. It must not
	// block.
	Report func(loadbalancer.Conflicts, loadbalancer.Proven)
	// RestrictARP, when set, is called for each interface in whose network an address is, whichever node is the holder:
	// the kernel has the address itself, as with IPVS, and must not answer for it there.
	RestrictARP func(device string) error
	Part        *status.Part
	Logger      *slog.Logger
}

// Speaker answers for this node's addresses.
type Speaker struct {
	o       Options
	changed timers.Signal // there is something to look at

	mu     sync.Mutex // of the last word of the store
	asked  vip.Moment
	record loadbalancer.Holders

	findings findings
}

// New prepares a speaker.
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
	return &Speaker{o: o, changed: timers.NewSignal(), findings: findings{last: map[netip.Addr]conflict{},
		proven: loadbalancer.Proven{}, reported: ";"}}, nil
}

// running is an address that is announced.
type running struct {
	holder loadbalancer.Holder
	iface  vip.Interface
	stop   func() // ends it, and waits
}

// Run announces until ctx is done; nothing is sent any more when it returns.
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
				s.o.Logger.Warn("load balancer: what the cluster says of holders cannot be read", "error", err)
			}
		}
		s.follow(ctx, now, record)
		var poll <-chan time.Time
		if slices.ContainsFunc(slices.Collect(maps.Values(record)), func(h loadbalancer.Holder) bool { return h.Node == s.o.NodeName }) {
			poll = time.After(again)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		case <-poll:
		}
	}
}

// follow makes what is announced what the record says.
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
		if err == nil && slices.Contains(routers, address) { // who answers for it reads what all machines of the network send elsewhere
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
	used, proven := s.findings.of(record, slices.Collect(maps.Keys(now)), time.Now())
	if words := used.String() + ";" + proven.String(); s.o.Report != nil && s.findings.reported != words {
		s.findings.reported = words
		s.o.Report(used, proven)
	}
	for _, address := range slices.SortedFunc(maps.Keys(used), netip.Addr.Compare) {
		trouble = append(trouble, fmt.Sprintf("%s is used by another machine, with the Ethernet address %s", address, used[address]))
	}
	s.show(now, trouble)
}

func (s *Speaker) show(now map[netip.Addr]running, trouble []string) {
	switch {
	case len(trouble) > 0:
		s.o.Part.Set(status.Degraded, strings.Join(trouble, "; "))
	case len(now) == 0:
		s.o.Part.Set(status.Running, "")
	default:
		s.o.Part.Set(status.Running, fmt.Sprintf("this node answers for %d addresses of Services", len(now)))
	}
}

// start announces an address when a holder before this one is certainly silent.
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
		s.o.Logger.Info("load balancer: this node answers for an address", "address", address, "interface", iface.Name)
		for ctx.Err() == nil {
			err := s.o.Announce(ctx, vip.Announcement{
				Address: address, Interface: iface, Logger: s.o.Logger,
				Confirm:  func(ctx context.Context) (vip.Moment, error) { return s.confirm(ctx, address, h) },
				Conflict: func(other net.HardwareAddr) { s.noteConflict(address, other) },
			})
			if err == nil {
				return
			}
			s.o.Logger.Warn("load balancer: an address is not announced any more; it is tried again", "address", address, "error", err)
			timers.Sleep(ctx, time.Second) // the reason may last
		}
	}()
	return running{holder: h, iface: iface, stop: func() {
		cancel()
		<-done
	}}
}

// confirm says until when this node may answer. What the store said counts from before it was asked, and is good for
// all addresses.
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
		return 0, fmt.Errorf("the node %s is the holder now", s.record[address].Node)
	}
	return s.asked.After(loadbalancer.Lease), nil
}
