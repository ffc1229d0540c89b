// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// applier keeps the virtual servers of one family in step. What it remembers only saves questions: a full apply reads all
// of the kernel's.
type applier struct {
	table Table
	// known is what the kernel has, as far as the last apply knows; nil: not known.
	known map[Key]VirtualServer
	// draining are virtual servers with real ones that are on their way out.
	draining map[Key]bool
}

// apply makes the kernel what is wanted: all of it, or with full unset what differs from what the last apply left, and what drains.
func (a *applier) apply(want map[Key]VirtualServer, full bool) error {
	known := a.known
	a.known = nil // until all went well
	present := map[Key]Server{}
	if full || known == nil {
		known = nil
		var err error
		if present, err = a.table.Servers(); err != nil {
			return err
		}
	} else {
		for k, v := range known {
			present[k] = v.Server
		}
	}
	var errs []error
	for k := range present {
		if _, ok := want[k]; !ok {
			errs = append(errs, a.table.DeleteServer(k))
			delete(a.draining, k)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(want), compareKeys) {
		v := want[k]
		if before, ok := known[k]; ok && !a.draining[k] && before.Server == v.Server && slices.Equal(before.Reals, v.Reals) {
			continue
		}
		errs = append(errs, a.server(k, v, present))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	a.known = maps.Clone(want)
	return nil
}

// server makes one virtual server what is wanted.
func (a *applier) server(k Key, v VirtualServer, present map[Key]Server) error {
	have, ok := present[k]
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
			errs = append(errs, a.table.SetWeight(k, r, 1)) // it came back while it drained
		}
	}
	delete(a.draining, k)
	for _, r := range reals {
		if _, wanted := slices.BinarySearchFunc(v.Reals, r.Addr, netip.AddrPort.Compare); wanted {
			continue
		}
		// Datagrams know no end of a connection: a real server that is gone would go on getting them.
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
