//go:build bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestServersOfService measures how long the Service kubernetes leads to a server that is gone, as another server's API
// says it, and how long until it leads there again once that one has an API: of the server that leads and of another
// one, whose processes are killed or whose machines vanish.
func TestServersOfService(t *testing.T) {
	c := New(t, 3, 0)
	fmt.Printf("\n| the Service kubernetes (each time %v after the cluster is whole) | times | p50 ms | most ms |\n| --- | --- | --- | --- |\n", settled())
	defer func() { fmt.Printf("load at the end: %s\n", load()) }()
	follower := func() *harness.Server { return Without(c.Servers, c.MustLeader())[0] }
	var ends []time.Duration
	for _, f := range []struct {
		name  string
		pick  func() *harness.Server
		fault func(*harness.Server) (undo func())
	}{
		{"the process of the server that leads is killed", c.MustLeader, kill(&ends)},
		{"the machine of the server that leads vanishes", c.MustLeader, c.vanish},
		{"the process of another server is killed", follower, kill(&ends)},
		{"the machine of another server vanishes", follower, c.vanish},
	} {
		var left, back []time.Duration
		for range times() {
			c.WaitWhole()
			time.Sleep(settled()) // for as long as the measurement is to have it
			victim := f.pick()
			api := c.Ask(Without(c.Servers, victim)[0])
			began := time.Now()
			undo := f.fault(victim)
			left = append(left, c.behind(t, api, victim, false).Sub(began))
			undo()
			c.answers(t, victim)
			began = time.Now()
			back = append(back, c.behind(t, api, victim, true).Sub(began))
			fmt.Printf("  %s: left out after %.0f ms, there again %.0f ms after its API answered, load %s\n", f.name, ms(last(left)), ms(last(back)), load())
		}
		row(f.name+": it is left out", left)
		row("it is back: from its API's first answer until it is there", back)
	}
}

// behind waits until the Service kubernetes leads to a server, or does not, and returns when that was seen.
func (c *Cluster) behind(t *testing.T, api kubernetes.Interface, s *harness.Server, want bool) time.Time {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for {
		slice, err := api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
		if err == nil && want == slices.ContainsFunc(slice.Endpoints, func(e discoveryv1.Endpoint) bool { return *e.Conditions.Ready && slices.Contains(e.Addresses, s.IP) }) {
			return time.Now()
		}
		if ctx.Err() != nil {
			t.Fatalf("that the Service leads to machine %d is to be %v: %v", s.Number, want, err)
		}
		pauseFor(ctx, retryAfter) // between two looks
	}
}

// answers waits until a server's API has answered.
func (c *Cluster) answers(t *testing.T, s *harness.Server) {
	t.Helper()
	api := c.Ask(s)
	harness.Eventually(t, soon, "its API answers", func() error {
		_, err := api.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context())
		return err
	})
}
