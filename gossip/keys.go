// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// ReadKeys reads the cluster's keys from a file; ok is false if there is none.
func ReadKeys(file string) (keys clusterconfig.GossipKeys, ok bool, err error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return keys, false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &keys)
	}
	if err == nil {
		err = keys.Validate()
	}
	if err != nil {
		return clusterconfig.GossipKeys{}, false, fmt.Errorf("gossip: read the keys in %s: %w", file, err)
	}
	return keys, true, nil
}

// WriteKeys keeps them, for root alone.
func WriteKeys(file string, keys clusterconfig.GossipKeys) error {
	return atomicfile.WriteJSON(file, keys, 0o600)
}
