// SPDX-License-Identifier: Apache-2.0

package storeusage_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/server/storeusage"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestEventsHaveAShareOfTheQuota: from an eighth of the quota new events live for ten minutes. From a quarter a
// namespace that has more than its share gets none, and others do.
func TestEventsHaveAShareOfTheQuota(t *testing.T) {
	const quota = 8 << 20
	var view *mvcc.View
	now := time.Unix(1000, 0)
	events := storeusage.NewEvents(func() *mvcc.View { return view }, func() int64 { return quota }, func() time.Time { return now })
	for _, c := range []struct {
		what          string
		loud, quiet   int // events of 64 KiB
		other         int // other objects of the size
		life          time.Duration
		refused, both bool
	}{
		{what: "few", loud: 8, life: time.Hour},
		{what: "few events among much", loud: 8, other: 100, life: time.Hour},
		{what: "an eighth", loud: 14, quiet: 2, life: 10 * time.Minute},
		{what: "a quarter", loud: 30, quiet: 2, life: 10 * time.Minute, refused: true},
		{what: "two that share a quarter", loud: 17, quiet: 17, life: 10 * time.Minute, refused: true, both: true},
	} {
		sizes := map[string]int{}
		add := func(form string, n int) {
			for i := range n {
				sizes[fmt.Sprintf(form, i)] = 64 << 10
			}
		}
		add("/registry/events/loud/%d", c.loud)
		add("/registry/events/quiet/%d", c.quiet)
		add("/registry/eventsources/loud/%d", c.other)
		view = viewOf(sizes)
		now = now.Add(time.Minute)
		for namespace, want := range map[string]bool{"loud": c.refused, "quiet": c.both} {
			life, refused := events.TTL(namespace, time.Hour)
			testenv.Equal(t, refused, want, "%s: refused in %s:", c.what, namespace)
			testenv.Equal(t, life, c.life, "%s: life in %s", c.what, namespace)
		}
		life, _ := events.TTL("loud", time.Minute)
		testenv.Equal(t, life, time.Minute, "%s: life of an event that lives for a minute", c.what)
	}
	view = viewOf(map[string]int{"/registry/events/loud/a": 4 << 20}) // not counted before a second has passed
	_, refused := events.TTL("quiet", time.Hour)
	testenv.Equal(t, refused, true, "a moment later: refused")
	now = now.Add(time.Second)
	_, refused = events.TTL("quiet", time.Hour)
	testenv.Equal(t, refused, false, "a second later: refused")
}
