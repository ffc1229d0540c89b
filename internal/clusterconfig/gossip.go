// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"crypto/rand"
	"errors"
	"fmt"
)

// gossipKeySize is the size of a key for AES-256, in bytes.
const gossipKeySize = 32

// maxGossipKeys is how many keys may be known at the same time. A rotation needs two: the old key and the new one.
const maxGossipKeys = 4

// GossipKeys encrypt the gossip between the members of the cluster.
type GossipKeys struct {
	// Generation is incremented by each change.
	Generation uint64 `json:"generation"`
	// Keys are all keys that can decrypt. The first one encrypts.
	Keys [][]byte `json:"keys"`
}

// NewGossipKeys makes the first key of a cluster.
func NewGossipKeys() GossipKeys { return GossipKeys{Generation: 1, Keys: [][]byte{newGossipKey()}} }

// Validate returns an error for keys that cannot be used.
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

// WithNew adds a new key after the first one and drops any others. The new key can decrypt, but does not encrypt yet.
func (k GossipKeys) WithNew() GossipKeys {
	return GossipKeys{Generation: k.Generation + 1, Keys: [][]byte{k.Keys[0], newGossipKey()}}
}

// UsingLast makes the newest key the one that encrypts. The other keys can still decrypt.
func (k GossipKeys) UsingLast() GossipKeys {
	last := len(k.Keys) - 1
	return GossipKeys{Generation: k.Generation + 1, Keys: append([][]byte{k.Keys[last]}, k.Keys[:last]...)}
}

// OnlyFirst removes all keys except the one that encrypts.
func (k GossipKeys) OnlyFirst() GossipKeys {
	return GossipKeys{Generation: k.Generation + 1, Keys: [][]byte{k.Keys[0]}}
}

func newGossipKey() []byte {
	key := make([]byte, gossipKeySize)
	_, _ = rand.Read(key) // never fails
	return key
}
