// SPDX-License-Identifier: Apache-2.0

// This file reads from the EndpointSlices of the Service kubernetes where the cluster's API servers are.

package clusterconfig

import (
	"net"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// Ready returns the addresses, as host:port, of the servers to which clients are sent. The slices also hold servers
// that are unavailable or about to join, as not ready, so that no Service may take their addresses.
func Ready(slices []discoveryv1.EndpointSlice) []string {
	var out []string
	for _, slice := range slices {
		for _, p := range slice.Ports {
			if p.Port == nil || p.Name == nil || *p.Name != "https" {
				continue
			}
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, a := range e.Addresses {
					out = append(out, net.JoinHostPort(a, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	return out
}
