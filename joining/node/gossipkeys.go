// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
)

// GossipKeys returns the keys that a server gave last. It returns none if no server had any.
func (n *Node) GossipKeys() clusterconfig.GossipKeys {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gossip
}

// ReachedAtStart reports whether this machine reached a server when it started, and so has the current keys. It must be
// called before Run.
func (n *Node) ReachedAtStart() bool { return !n.noReply }

// RefreshGossipKeys requests the current gossip keys from the servers, one after the other, with the node's
// certificate, and stores them.
func (n *Node) RefreshGossipKeys(ctx context.Context) error {
	pair, root := n.identity()
	if pair == nil {
		return errors.New("the node has no valid certificate")
	}
	q := protocol.Call{
		Dialer: net.Dialer{Timeout: dialTimeout}, Certificate: pair, Root: root,
		Request: protocol.Request{
			Role: token.RoleAgent, Want: protocol.WantGossipKeys, Program: n.o.Program, Time: n.o.Now(),
			Node: protocol.Node{Name: n.o.NodeName},
		},
	}
	var errs []error
	for _, q.Address = range n.servers() {
		a, err := protocol.Send(ctx, q)
		switch {
		case err != nil:
			errs = append(errs, err)
		case a.Gossip == nil:
			errs = append(errs, fmt.Errorf("the server at %s gives no gossip keys: its version is too old. Update it", q.Address))
		default:
			return n.keepGossipKeys(a.Gossip)
		}
	}
	return errors.Join(errs...)
}

// useGossipKeys stores the keys of a response in memory, if there are any.
func (n *Node) useGossipKeys(k *clusterconfig.GossipKeys) error {
	if k == nil {
		return nil
	}
	if err := k.Validate(); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gossip = *k
	return nil
}

func (n *Node) keepGossipKeys(k *clusterconfig.GossipKeys) error {
	if err := n.useGossipKeys(k); err != nil {
		return err
	}
	return n.writeState()
}

// writeState writes the contents of the last response to a file.
func (n *Node) writeState() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	data, err := json.MarshalIndent(state{Node: n.o.NodeName, Addresses: n.o.Addresses, External: n.o.External, Settings: n.Settings,
		Level: level.Field(n.Level), Gossip: n.gossip}, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the cluster's settings: %w", err)
	}
	_, err = atomicfile.WriteIfDifferent(n.stateFile(), data, 0o600)
	return err
}
