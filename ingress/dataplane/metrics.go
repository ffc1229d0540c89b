// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// hostStats are the counters of one host. They are kept when the host changes.
type hostStats struct {
	requests    [6]atomic.Uint64
	durations   [len(table.DurationBuckets) + 1]atomic.Uint64
	nanoseconds atomic.Uint64
}

// count counts a request. The time of a stream is not counted.
func (s *hostStats) count(status int, took time.Duration, stream bool) {
	s.requests[min(max(0, status/100), 5)].Add(1)
	if stream {
		return
	}
	at := 0
	for at < len(table.DurationBuckets) && took.Seconds() > table.DurationBuckets[at] {
		at++
	}
	s.durations[at].Add(1)
	s.nanoseconds.Add(uint64(max(0, took)))
}

func (s *hostStats) read(site, name string) table.HostStats {
	out := table.HostStats{Site: site, Host: name, Seconds: time.Duration(s.nanoseconds.Load()).Seconds()}
	for i := range s.requests {
		out.Requests[i] = s.requests[i].Load()
	}
	for i := range s.durations {
		out.Durations[i] = s.durations[i].Load()
	}
	return out
}

// statsOf returns the counters of a host. Once there are MaxCountedHosts, further hosts share o.others.
func (o *objects) statsOf(key string) *hostStats {
	s := o.counted[key]
	switch {
	case s != nil:
		return s
	case len(o.counted) >= table.MaxCountedHosts:
		return &o.uncountedStats
	}
	s = &hostStats{}
	o.counted[key] = s
	return s
}

func (r *request) statsOf(s *siteRoutes, name string) *hostStats {
	if h := s.find(name); h != nil && h.stats != nil {
		return h.stats
	}
	return &r.proxy.objects.uncountedStats
}

// Report returns the current counters.
func (p *Proxy) Report() *table.Stats {
	out := &table.Stats{
		Connections: p.stats.Connections.Load(), Websockets: p.stats.Tunnels.Load(), Refused: p.stats.Refused.Load(),
		DialFailures: p.stats.DialFailures.Load(), Panics: p.stats.Panics.Load(),
		Limited: table.Limited{
			Memory: p.stats.Limited.Memory.Load(), Connections: p.stats.Limited.Connections.Load(),
			Requests: p.stats.Limited.Requests.Load(),
		},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, s := range p.objects.counted {
		site, name, _ := table.HostOf(key)
		out.Hosts = append(out.Hosts, s.read(site, name))
	}
	slices.SortFunc(out.Hosts, func(a, b table.HostStats) int { return strings.Compare(a.Site+"/"+a.Host, b.Site+"/"+b.Host) })
	out.Hosts = append(out.Hosts, p.objects.uncountedStats.read("", table.OtherHosts))
	return out
}
