// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/joining/member"
	joiningnode "github.com/coracle-k8s/coracle/joining/node"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/server"
	"github.com/coracle-k8s/coracle/server/admission"
)

// joinedOptions returns the server's options with the cluster's level, and its settings where this server has joined
// one. If this server has not joined yet, joinedOptions sends a join request to a server of the cluster.
func joinedOptions(ctx context.Context, o server.Options) (server.Options, error) {
	c := o.Server // as this server was given it
	joined, err := admission.WasJoined(o.ServerDir)
	if err == nil && c.ServerURL != nil && (joined == nil || !joined.Founder) {
		r := member.Request{Address: c.ServerURL.Host, Token: c.Token, Flags: o.SharedFlags(), Program: o.Version, Now: time.Now,
			Logger: o.Logger}
		if !c.DisableAgent {
			r.Node = protocol.Node{Name: c.Node.Name, Addresses: c.Node.IPs}
			if r.Node.Password, err = joiningnode.Password(c.Paths.AgentDir); err != nil {
				return o, err
			}
		}
		before := o
		o.Renew = func(ctx context.Context) error { return server.RenewJoin(ctx, before, r) }
		joined, err = server.Join(ctx, o, r)
	}
	if err != nil {
		return o, err
	}
	o.Level = serverLevel(o, joined)
	// A back end to which the cluster has changed since takes precedence.
	known := cli.KnownBackend(o.ServerDir, c.Paths.AgentDir)
	if joined == nil {
		has := cmp.Or(known, c.Cluster.NetworkBackend)
		if c.Cluster.NetworkBackend == clusterconfig.NetworkNone { // this is the only server, and another plugin makes the pod network
			has = clusterconfig.NetworkNone
		}
		o.Cluster.NetworkBackend = has
		return o, conflictingBackend(&c, has)
	}
	joined.Settings.NetworkBackend = cmp.Or(known, joined.Settings.NetworkBackend)
	if err := conflictingSettings(&c, joined); err != nil {
		return o, err
	}
	o.Cluster, o.ServerSettings, o.Join = joined.Settings, joined.ServerSettings, joined.Peers
	if o.LBPool, err = loadbalancer.Parse(joined.Settings.Balancer.Pool); err != nil {
		return o, fmt.Errorf("the cluster's --load-balancer-pool: %w", err)
	}
	if !slices.Contains(c.Given, "load-balancer-reserved-ports") { // a flag that is given may have changed since this server joined
		o.LBReserved = joined.Settings.Balancer.ReservedPorts
	}
	if o.Cluster.Disabled.Has(clusterconfig.PartConsole) && o.ConsoleListen != "" {
		return o, errors.New("--console-listen: this server's cluster has --disable console; remove --console-listen")
	}
	if o.Cluster.Disabled.Has(clusterconfig.PartMetrics) && o.MetricsHistory {
		return o, errors.New("--metrics-history: this server's cluster has --disable metrics-server; remove --metrics-history")
	}
	if c.ServerURL != nil {
		o.Join = append(o.Join, c.ServerURL.Host)
	}
	return o, nil
}
