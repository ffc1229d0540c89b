// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// slowStore is a store whose collections take their time, the last one again and again.
type slowStore struct {
	takes   []time.Duration
	changed func(deletion bool)
	done    chan time.Time // unbuffered: a collection that nobody expects is one too many
}

type took time.Duration

func (t took) Elapsed() time.Duration { return time.Duration(t) }

func (s *slowStore) RegisterMutationCallback(f func(bool)) { s.changed = f }

func (s *slowStore) GarbageCollect(ctx context.Context) (gc.Stats, error) {
	d := s.takes[0]
	if len(s.takes) > 1 {
		s.takes = s.takes[1:]
	}
	time.Sleep(d) // fake time
	select {
	case s.done <- time.Now():
		return took(d), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// collecting runs containerd's own scheduler of collections as we set it.
func collecting(ctx context.Context, t *testing.T, s *slowStore) {
	t.Helper()
	const id = "io.containerd.gc.v1.scheduler"
	all := registry.Graph(func(r *plugin.Registration) bool { return r.URI() != id })
	if len(all) != 1 {
		t.Fatalf("%d plugins are %s", len(all), id)
	}
	config, err := serverConfig(Options{State: "/s"}, "native", host{}).Decode(ctx, id, all[0].Config)
	if err != nil {
		t.Fatal(err)
	}
	others := plugin.NewPluginSet()
	if err := others.Add(plugin.Registration{
		Type: plugins.MetadataPlugin, ID: "bolt", InitFn: func(*plugin.InitContext) (any, error) { return s, nil },
	}.Init(plugin.NewContext(ctx, others, nil))); err != nil {
		t.Fatal(err)
	}
	ic := plugin.NewContext(ctx, others, nil)
	ic.Config = config
	if _, err := all[0].Init(ic).Instance(); err != nil {
		t.Fatal(err)
	}
}

// TestRemovedIsCollected: the room of what was removed is free a moment later, however slow the disk is, and was: the kubelet evicts one pod after the other as long as it
// sees none. Nothing is collected where nothing was removed.
func TestRemovedIsCollected(t *testing.T) {
	for name, takes := range map[string][]time.Duration{
		"a fast disk":                       {2 * time.Millisecond},
		"a memory card":                     {300 * time.Millisecond},
		"a disk that was busy at the start": {30 * time.Second, 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				last := takes[len(takes)-1]
				s := &slowStore{takes: takes, done: make(chan time.Time)}
				collecting(ctx, t, s)
				<-s.done // the one of the start
				for i := range 20 {
					time.Sleep(time.Duration(1+137*i) * time.Millisecond) // fake time
					began := time.Now()
					s.changed(true)
					if wait := (<-s.done).Sub(began); wait > 2*time.Second+last {
						t.Fatalf("what was removed is collected after %v", wait)
					}
				}
				select {
				case <-s.done:
					t.Error("a collection of nothing")
				case <-time.After(time.Hour): // fake time
				}
			})
		})
	}
}
