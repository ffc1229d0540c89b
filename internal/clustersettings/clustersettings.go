// SPDX-License-Identifier: Apache-2.0

// Package clustersettings follows the ConfigMaps of kube-system that every machine of a cluster follows: its virtual
// addresses, its network back end, the holders of load balancers' addresses and the operator's configuration of the
// DNS. It reads only.
//
// A StreamClient follows all of them in one stream of an API server, which costs the server less than a watch for each
// (docs/adr/0072). The package server/settings serves the stream.
package clustersettings

import (
	"context"
	"maps"
	"sync"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// DNS is the name of the ConfigMap with the operator's configuration of the cluster's DNS. It is k3s' name for it.
const DNS = "coredns-custom"

// Names returns the names of the ConfigMaps in kube-system for which servers have a stream. The identity of a node's
// network may read these and no other ConfigMaps.
func Names() []string {
	return []string{clusterconfig.BackendConfigMap, clusterconfig.VIPConfigMap, loadbalancer.ConfigMap, DNS}
}

// Data is the data of a ConfigMap. It is nil where there is no ConfigMap.
type Data map[string]string

// equal reports whether a and b are the same. A missing ConfigMap and an empty one differ.
func (d Data) equal(b Data) bool { return (d == nil) == (b == nil) && maps.Equal(d, b) }

// Follower follows ConfigMaps of kube-system.
type Follower interface {
	// Follow calls update with the data of the ConfigMap with this name, and again when they change, until ctx is done.
	// It calls update with nil when the ConfigMap is deleted. It does not call update before the ConfigMap exists for
	// the first time. It calls update from its own goroutine.
	Follow(ctx context.Context, name string, update func(Data))
}

// Key calls update with the value of one key of a ConfigMap, and with "" when the ConfigMap is deleted.
func Key(ctx context.Context, f Follower, name, key string, update func(string)) {
	f.Follow(ctx, name, func(d Data) { update(d[key]) })
}

// Cache holds the data of ConfigMaps. It is a Follower of these.
type Cache struct {
	mu      sync.Mutex
	data    map[string]Data
	changes timers.Broadcast
}

// NewCache makes a cache without any ConfigMap.
func NewCache() *Cache { return &Cache{data: map[string]Data{}} }

// Set replaces the data of one ConfigMap. nil removes the ConfigMap.
func (c *Cache) Set(name string, data Data) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.data[name].equal(data) {
		return
	}
	c.data[name] = data
	c.changes.Send()
}

// Follow implements Follower. If several changes happen while update runs, it passes on only the last one.
func (c *Cache) Follow(ctx context.Context, name string, update func(Data)) {
	for last := Data(nil); ; {
		changed := c.changes.Next()
		c.mu.Lock()
		now := c.data[name]
		c.mu.Unlock()
		if !now.equal(last) && ctx.Err() == nil {
			update(now)
			last = now
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
