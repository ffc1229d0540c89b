// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"fmt"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// ReadKeys reads the cluster's keys from a file. ok is false if there is none.
func ReadKeys(file string) (keys clusterconfig.GossipKeys, ok bool, err error) {
	if ok, err = atomicfile.ReadJSON(file, &keys); ok {
		err = keys.Validate()
	}
	if err != nil {
		return clusterconfig.GossipKeys{}, false, fmt.Errorf("gossip: read the keys in %s: %w", file, err)
	}
	return keys, ok, nil
}

// WriteKeys writes the keys to a file that only root can read.
func WriteKeys(file string, keys clusterconfig.GossipKeys) error {
	return atomicfile.WriteJSON(file, keys, 0o600)
}
