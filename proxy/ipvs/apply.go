// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// applier writes the virtual servers of one family to the kernel. Its cache only saves requests: a full apply reads
// everything from the kernel.
type applier struct {
	table Table
	// applied is what the kernel has, as of the last apply. nil means unknown.
	applied map[Key]VirtualServer
	// draining are virtual servers with draining real servers.
	draining map[Key]bool
	// lacking are schedulers that the kernel has reported as missing since the last full apply. DefaultScheduler
	// replaces them. Otherwise one Service's scheduler would make every apply fail.
	lacking map[string]bool
}

// apply makes the kernel match want. With full it handles everything. Otherwise it handles what differs from the result
// of the last apply, and what drains. Only keys in touched may differ; nil means all. An error for one virtual server
// does not prevent the others.
func (a *applier) apply(want map[Key]VirtualServer, touched map[Key]bool, full bool) error {
	if full {
		clear(a.lacking) // the administrator may have loaded the module
	}
	known := a.applied
	a.applied = nil // unknown until everything has succeeded
	present := func(k Key) (Server, bool) { v, ok := known[k]; return v.Server, ok }
	if full || known == nil {
		servers, err := a.table.Servers()
		if err != nil {
			return err
		}
		present = func(k Key) (Server, bool) { s, ok := servers[k]; return s, ok }
		known, touched = map[Key]VirtualServer{}, keysOf(servers, want)
		clear(a.draining) // all are checked below; those that another program removed do not drain any more
	} else if touched == nil {
		touched = keysOf(known, want)
	} else if len(a.draining) > 0 {
		touched = keysOf(touched, a.draining)
	}
	var errs []error
	keys := slices.SortedFunc(maps.Keys(touched), compareKeys)
	for _, k := range keys {
		if _, ok := want[k]; ok {
			continue
		}
		if _, ok := present(k); ok {
			errs = append(errs, a.table.DeleteServer(k))
			delete(a.draining, k)
		}
	}
	for _, k := range keys {
		v, ok := want[k]
		if !ok {
			continue
		}
		v = a.withKernelScheduler(v)
		if before, ok := known[k]; ok && !a.draining[k] && before.Server == v.Server && slices.Equal(before.Reals, v.Reals) {
			continue
		}
		err := a.server(k, v, present)
		if errors.Is(err, errNoScheduler) && v.Scheduler != DefaultScheduler {
			if a.lacking == nil {
				a.lacking = map[string]bool{}
			}
			a.lacking[v.Scheduler] = true
			err = a.server(k, a.withKernelScheduler(v), present)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, k := range keys {
		if v, ok := want[k]; ok {
			known[k] = a.withKernelScheduler(v)
		} else {
			delete(known, k)
		}
	}
	a.applied = known
	return nil
}

// keysOf returns the keys of both maps.
func keysOf[A, B any](a map[Key]A, b map[Key]B) map[Key]bool {
	out := make(map[Key]bool, max(len(a), len(b)))
	for k := range a {
		out[k] = true
	}
	for k := range b {
		out[k] = true
	}
	return out
}

// withKernelScheduler returns the virtual server with a scheduler that, as far as is known, the kernel has.
func (a *applier) withKernelScheduler(v VirtualServer) VirtualServer {
	if a.lacking[v.Scheduler] {
		v.Scheduler = DefaultScheduler
	}
	return v
}

// server makes one virtual server match v.
func (a *applier) server(k Key, v VirtualServer, present func(Key) (Server, bool)) error {
	have, ok := present(k)
	switch {
	case !ok:
		if err := a.table.AddServer(k, v.Server); err != nil {
			return err
		}
	case have != v.Server:
		if err := a.table.UpdateServer(k, v.Server); err != nil {
			return err
		}
	}
	reals, err := a.table.Reals(k)
	if err != nil {
		return err
	}
	var errs []error
	weights := map[netip.AddrPort]int{}
	for _, r := range reals {
		weights[r.Addr] = r.Weight
	}
	for _, r := range v.Reals {
		weight, ok := weights[r]
		switch {
		case !ok:
			errs = append(errs, a.table.AddReal(k, r))
		case weight != 1:
			errs = append(errs, a.table.SetWeight(k, r, 1)) // it returned while it drained
		}
	}
	delete(a.draining, k)
	for _, r := range reals {
		if _, wanted := slices.BinarySearchFunc(v.Reals, r.Addr, netip.AddrPort.Compare); wanted {
			continue
		}
		// UDP has no end of a connection: a removed real server would get datagrams forever.
		if r.Connections == 0 || k.Protocol == corev1.ProtocolUDP || !drains(v.Scheduler) {
			errs = append(errs, a.table.DeleteReal(k, r.Addr))
			continue
		}
		if a.draining == nil {
			a.draining = map[Key]bool{}
		}
		a.draining[k] = true
		if r.Weight != 0 {
			errs = append(errs, a.table.SetWeight(k, r.Addr, 0))
		}
	}
	return errors.Join(errs...)
}
