// SPDX-License-Identifier: Apache-2.0

// Package suite is upstream's conformance suite of the Gateway API, in a module of its own: what the suite needs stays
// out of the main go.mod.
package suite

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

// TestConformance wants a cluster that KUBECONFIG names, and upstream's options.
func TestConformance(t *testing.T) { conformance.RunConformance(t) }
