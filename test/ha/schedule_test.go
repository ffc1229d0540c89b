//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestScheduledSnapshots: three servers save the cluster every minute, one after the other. While nothing changes none
// is taken, though nodes report, Leases are renewed, the store compacts and kubelets complain that their disk is nearly
// full. After a change each server takes one, and each keeps as many as its flag says.
func TestScheduledSnapshots(t *testing.T) {
	harness.ByHand(t)
	if !whole {
		// Its ten minutes are mostly waiting, which no shorter length can show.
		t.Skip("it waits for minutes in which nothing may happen: make e2e-ha has it")
	}
	const kept = 2
	c := &Cluster{T: t, nodes: true, prepare: func(s *harness.Server) {
		s.Args = append(s.Args, "--snapshot-schedule-cron", "* * * * *", "--snapshot-retention", fmt.Sprint(kept),
			"--kubelet-arg", "image-gc-high-threshold=2", "--kubelet-arg", "image-gc-low-threshold=1") // there is nothing to collect
	}}
	c.start(3, 0)
	taken := func() map[int][]string {
		out := map[int][]string{}
		for _, s := range c.Servers {
			out[s.Number] = c.scheduled(t, s)
		}
		return out
	}
	each := func(what string, before map[int][]string) {
		t.Helper()
		harness.Eventually(t, soon, what+": each server has saved the cluster", func() error {
			for number, now := range taken() {
				if newest := now[max(0, len(now)-1):]; len(newest) == 0 || slices.Contains(before[number], newest[0]) {
					return fmt.Errorf("server %d has %v", number, now)
				}
			}
			return nil
		})
	}
	each("at first", nil)
	first := taken()
	var moments []time.Duration // in the minute
	for number, names := range first {
		at, err := time.Parse("20060102T150405Z", names[0][strings.LastIndex(names[0], "-")+1:])
		testenv.NoError(t, err, "server %d", number)
		moments = append(moments, time.Duration(at.Second())*time.Second)
	}
	if slices.Sort(moments); moments[1]-moments[0] < 10*time.Second || moments[2]-moments[1] < 10*time.Second {
		t.Errorf("the servers do not take turns: they saved at %v of a minute", moments)
	}
	// What a cluster that is new has to write ends by itself. Compaction, image collection and reports of nodes come
	// every five minutes.
	harness.Eventually(t, 30*time.Minute, "none is taken for six minutes", func() error {
		before := taken()
		time.Sleep(6*time.Minute + 10*time.Second) // no event says that nothing has happened
		if now := taken(); fmt.Sprint(now) != fmt.Sprint(before) {
			return fmt.Errorf("they are %v, and were %v", now, before)
		}
		return nil
	})
	for i := range kept + 1 {
		before := taken()
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("change-%d", i)}}
		harness.Eventually(t, soon, "a change", func() error {
			_, err := c.Ask(c.Servers[i%3]).CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(t.Context(), object, metav1.CreateOptions{})
			return unlessThere(err)
		})
		each(object.Name, before)
	}
	harness.Eventually(t, soon, "the older ones are gone", func() error {
		for number, names := range taken() {
			if len(names) != kept {
				return fmt.Errorf("server %d keeps %v, want %d", number, names, kept)
			}
		}
		return nil
	})
}

// scheduled are the names of the snapshots that a server has taken by its schedule, the oldest first.
func (c *Cluster) scheduled(t *testing.T, s *harness.Server) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(s.Seen("snapshots"))
	testenv.Require(t, err == nil || errors.Is(err, os.ErrNotExist), "%v", err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "scheduled-") && !strings.Contains(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names
}
