// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"github.com/coracle-k8s/coracle/agent"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/preflight"
)

// checkProxyMode returns an error for --proxy-mode=ipvs on a kernel without IPVS: the node would have no Services. The
// function missing returns an error that says what the kernel lacks.
func checkProxyMode(machine config.Node, settings clusterconfig.Settings,
	missing func(mode, scheduler string, pods []netip.Prefix) error) error {
	if machine.ProxyMode != "ipvs" || settings.NoServiceProxy {
		return nil
	}
	if err := missing(machine.ProxyMode, machine.IPVSScheduler, settings.PodCIDRs); err != nil {
		return fmt.Errorf("--proxy-mode=ipvs: %w. Services would not be served, so nothing was started; "+
			"pods that run go on. %s", err, preflight.IPVSAdvice)
	}
	return nil
}

// checkHost returns the machine that coracle check examines.
func checkHost() preflight.Host {
	h := preflight.LocalHost()
	h.IPVS = agent.MissingForIPVS
	return h
}
