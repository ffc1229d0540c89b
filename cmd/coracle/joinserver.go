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
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/joining/member"
	joiningnode "github.com/coracle-k8s/coracle/joining/node"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/server"
	"github.com/coracle-k8s/coracle/server/admission"
)

// joinedOptions returns the server's options, with the cluster's settings where this server has joined one. If this
// server has not joined yet, joinedOptions sends a join request to a server of the cluster.
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
	// A back end to which the cluster has changed since takes precedence.
	known := cli.KnownBackend(o.ServerDir, c.Paths.AgentDir)
	if joined == nil {
		has := cmp.Or(known, c.Cluster.NetworkBackend)
		if c.Cluster.NetworkBackend == clusterconfig.NetworkNone { // this is the only server, and another plugin makes the pod network
			has = clusterconfig.NetworkNone
		}
		o.Cluster.NetworkBackend = has
		return o, backendContradiction(&c, has)
	}
	joined.Settings.NetworkBackend = cmp.Or(known, joined.Settings.NetworkBackend)
	if err := contradictions(&c, joined); err != nil {
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

// contradictions returns an error for each setting that was given on this server and differs from the cluster's.
func contradictions(c *config.Server, j *admission.Joined) error {
	errs := []error{backendContradiction(c, j.Settings.Backend())}
	cluster := *c
	cluster.Cluster, cluster.ServerSettings = j.Settings, j.ServerSettings
	for _, s := range config.Table(config.ServerCommand) {
		if s.Scope != config.ClusterWide || s.Value == nil || !slices.Contains(c.Given, s.Name) || s.Value(c) == s.Value(&cluster) {
			continue
		}
		err := fmt.Errorf("--%s: this server was given %q, but its cluster has %q; remove the flag", s.Name, s.Value(c), s.Value(&cluster))
		if s.Name == "load-balancer-pool" {
			err = fmt.Errorf("%w. AddressPools add other addresses; one with the name default replaces the flag", err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// backendContradiction returns an error for a --network-backend that differs from the cluster's: no node would use it.
func backendContradiction(c *config.Server, has string) error {
	if given := givenBackend(c); given == "" || given == has {
		return nil
	}
	err := fmt.Errorf("--network-backend: this server was given %q, but its cluster has %q; remove the flag",
		c.Cluster.NetworkBackend, has)
	if running := clusterconfig.RunningBackends(); slices.Contains(running, has) && slices.Contains(running, c.Cluster.NetworkBackend) {
		err = fmt.Errorf("%w. To change the cluster's back end while it runs: coracle network-backend set %s", err, c.Cluster.NetworkBackend)
	}
	return err
}

// givenBackend returns the --network-backend that this server was given, or "".
func givenBackend(c *config.Server) string {
	if !slices.Contains(c.Given, "network-backend") {
		return ""
	}
	return c.Cluster.NetworkBackend
}
