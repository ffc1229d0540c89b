// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/server/admission"
)

// conflictingSettings returns an error for each setting that was given on this server and differs from the cluster's.
func conflictingSettings(c *config.Server, j *admission.Joined) error {
	errs := []error{conflictingBackend(c, j.Settings.Backend())}
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

// conflictingBackend returns an error for a --network-backend that differs from the cluster's: no node would use it.
func conflictingBackend(c *config.Server, has string) error {
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
