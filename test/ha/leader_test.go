//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestLeaderKilled: when the server that leads has been killed, the controllers and the scheduler of another one make
// the pods of a Deployment and bind them.
func TestLeaderKilled(t *testing.T) {
	c := New(t, 3, 1)
	times := 2
	if whole {
		times = 20
	}
	for i := range times {
		leader := c.MustLeader()
		other := Without(c.Servers, leader)[0]
		api := c.Ask(other)
		name := fmt.Sprintf("d-%d", i)
		leader.Kill()
		killed := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		testenv.Check(t, Bound(ctx, api, name))
		cancel()
		t.Logf("a new Deployment's pods are bound %v after the leader's death", time.Since(killed).Round(time.Millisecond))
		harness.Eventually(t, soon, "the Deployment is deleted", func() error {
			return ignoreNotFound(api.AppsV1().Deployments("default").Delete(t.Context(), name, metav1.DeleteOptions{}))
		})
		leader.Start()
		c.WaitWhole()
	}
}
