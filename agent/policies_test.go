// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"testing"

	"github.com/go-logr/logr"

	"github.com/coracle-k8s/coracle/proxy"
)

// Policies are never enforced by half: who asks for IPVS as well is told so, before anything is made.
func TestPoliciesRefuseIPVS(t *testing.T) {
	if _, err := newPolicies(Options{ProxyMode: proxy.ModeIPVS}, nil, logr.Discard()); !errors.Is(err, errPoliciesWithIPVS) {
		t.Errorf("got %v", err)
	}
}
