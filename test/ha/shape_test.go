//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestPowerCut: all machines lose their power at once, and come back in another order. Nothing that was acknowledged is lost.
func TestPowerCut(t *testing.T) {
	c := New(t, 3, 1)
	x := startClients(t, c, "load", "")
	x.some(t)
	all := append(slices.Clone(c.Servers), c.Agents...)
	for _, s := range all {
		s.PowerOff()
	}
	x.stop()
	for _, s := range slices.Backward(all) {
		s.PowerOn()
		s.Start()
	}
	back := time.Now()
	c.WaitWhole()
	t.Logf("whole %v after the last one was switched on", time.Since(back).Round(100*time.Millisecond))
	x.allHave(t, x.names())
}

// TestShape: a cluster of three servers grows to five, shrinks to three, and each of these is replaced by a new machine, while clients write.
func TestShape(t *testing.T) {
	if !whole {
		t.Skip("it takes minutes: make e2e-ha has it")
	}
	c := New(t, 3, 0)
	x := startClients(t, c, "load", "")
	x.some(t)
	c.Join()
	c.Join()
	c.WaitWhole()
	c.remove(t, c.MustLeader())
	c.remove(t, c.MustLeader())
	c.WaitWhole()
	for _, s := range slices.Clone(c.Servers) {
		c.Join()
		// Four servers: three vote, and the new one has everything.
		harness.Eventually(t, soon, "the new server serves", func() error { return c.whole(t.Context()) })
		c.remove(t, s)
		c.WaitWhole()
	}
	x.stop()
	x.allHave(t, x.names())
}

// remove stops a server and takes it out of the cluster, by its name, which the others know although it has no node and does not answer.
func (c *Cluster) remove(t *testing.T, s *harness.Server) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	c.Servers = Without(c.Servers, s)
	tries := 0
	harness.Eventually(t, soon, fmt.Sprintf("server %d is removed", s.Number), func() error {
		other := c.Servers[0]
		_, err := other.Run(other.Coracle(), "member", "remove", s.NodeName(), "--data-dir", other.DataDir)
		if tries++; tries > 1 && err != nil && strings.Contains(err.Error(), "there is no server") { // an earlier try had no answer
			return nil
		}
		return err
	})
}

// some waits until each writer has had writes acknowledged.
func (x *clients) some(t *testing.T) {
	t.Helper()
	harness.Eventually(t, soon, "some writes at each server", func() error {
		for s, w := range x.writers {
			if acked, _ := w.Acked(); len(acked) < 20 {
				return fmt.Errorf("%d at server %d", len(acked), s.Number)
			}
		}
		return nil
	})
}

// names are the ConfigMaps whose writes were acknowledged.
func (x *clients) names() []string {
	var names []string
	for _, w := range x.writers {
		acked, _ := w.Acked()
		for _, a := range acked {
			names = append(names, a.Name)
		}
	}
	return names
}
