// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A firewall refuses what one follower dials to the leader's machine, and the connection on which it hears the leader
// breaks now and then. The others hear the leader, so it stays.
func TestScenarioOneIsRefused(t *testing.T) {
	seeds(t, 3, func(t *testing.T, seed uint64) {
		type way struct{ from, to string }
		var mu sync.Mutex
		var refused way
		conns := map[way][]net.Conn{}
		tune := func(o *Options) {
			name, dial := o.NodeID, o.Network.Dial
			o.Network.Dial = func(ctx context.Context, address string) (net.Conn, error) {
				this := way{name, address}
				mu.Lock()
				refuse := this == refused
				mu.Unlock()
				if refuse {
					return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
				}
				conn, err := dial(ctx, address)
				if err == nil {
					mu.Lock()
					conns[this] = append(conns[this], conn)
					mu.Unlock()
				}
				return conn, err
			}
		}
		stage(t, seed, 3, tune, func(c *cluster) {
			leader := c.leader()
			term, one := leader.term(), c.others(leader)[0]
			mu.Lock()
			refused = way{one.name, leader.name}
			mu.Unlock()
			for range 10 {
				c.pass(5*time.Second + time.Duration(c.rand.Int64N(int64(time.Second))))
				mu.Lock()
				broken := conns[way{leader.name, one.name}]
				delete(conns, way{leader.name, one.name})
				mu.Unlock()
				for _, conn := range broken {
					_ = conn.Close() // some are already
				}
			}
			c.pass(time.Second)
			if grown := c.leader().term() - term; grown > 0 || !leader.leads() {
				t.Errorf("seed %d: %d elections, though only one server does not reach the leader", seed, grown)
			}
		})
	})
}
