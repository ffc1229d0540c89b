// SPDX-License-Identifier: Apache-2.0

package clusterconfig_test

import (
	"slices"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// TestOnlyReadyServersWithAPortAreListed: ports of other names, or without a number, and servers that are not ready are
// passed over.
func TestOnlyReadyServersWithAPortAreListed(t *testing.T) {
	port, otherPort, name, other := int32(6443), int32(7443), "https", "metrics"
	parts := []discoveryv1.EndpointSlice{{
		Ports:     []discoveryv1.EndpointPort{{Name: &other, Port: &port}, {Name: &name}, {Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}},
	}, {
		Ports:     []discoveryv1.EndpointPort{{Name: &name, Port: &otherPort}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"fd00::2"}}, {Addresses: []string{"fd00::3"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false)}}},
	}}
	if got, want := clusterconfig.Ready(parts), []string{"10.0.0.1:6443", "[fd00::2]:7443"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
