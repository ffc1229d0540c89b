// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"crypto/rand"
	"errors"
	"fmt"
)

// gossipKeySize makes AES-256 of the key.
const gossipKeySize = 32

// maxGossipKeys is how many may be known at a time: the one that is replaced and the one that replaces it.
const maxGossipKeys = 4

// GossipKeys encrypt what the members of the cluster tell one another.
type GossipKeys struct {
	// Generation goes up with each change.
	Generation uint64 `json:"generation"`
	// Keys are all that are understood. The first is the one to send with.
	Keys [][]byte `json:"keys"`
}

// NewGossipKeys makes the first key of a cluster.
func NewGossipKeys() (GossipKeys, error) {
	key, err := newGossipKey()
	return GossipKeys{Generation: 1, Keys: [][]byte{key}}, err
}

// Validate finds keys that cannot be used.
func (k GossipKeys) Validate() error {
	if k.Generation == 0 || len(k.Keys) == 0 || len(k.Keys) > maxGossipKeys {
		return errors.New("no usable gossip keys")
	}
	for _, key := range k.Keys {
		if len(key) != gossipKeySize {
			return fmt.Errorf("a gossip key has %d bytes, and not %d", len(key), gossipKeySize)
		}
	}
	return nil
}

// WithNew adds a new key behind the others: it is understood and not used yet.
func (k GossipKeys) WithNew() (GossipKeys, error) {
	key, err := newGossipKey()
	return GossipKeys{Generation: k.Generation + 1, Keys: append(append([][]byte(nil), k.Keys[0]), key)}, err
}

// UsingLast makes the newest key the one to send with; the one before is still understood.
func (k GossipKeys) UsingLast() GossipKeys {
	last := len(k.Keys) - 1
	return GossipKeys{Generation: k.Generation + 1, Keys: append([][]byte{k.Keys[last]}, k.Keys[:last]...)}
}

// OnlyFirst forgets all keys but the one that is used.
func (k GossipKeys) OnlyFirst() GossipKeys {
	return GossipKeys{Generation: k.Generation + 1, Keys: [][]byte{k.Keys[0]}}
}

func newGossipKey() ([]byte, error) {
	key := make([]byte, gossipKeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("making a gossip key: %w", err)
	}
	return key, nil
}
