// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

const (
	// BackendConfigMap, in kube-system, has the cluster's back end: what is there counts, for all nodes. A cluster
	// begins with the setting of its first server.
	BackendConfigMap = "network-backend.coracle"
	// BackendData is its key; the value is one of NetworkBackends.
	BackendData = "backend"
	// backendFile is each server's copy, in its folder; a node has one of its own (cni).
	backendFile = "network-backend.json"
)

// BackendAnnotation on a node has the back end that the node goes by. Each node that can change it writes its own.
const BackendAnnotation = "coracle.dev/network-backend"

type keptBackend struct {
	Backend string `json:"backend"`
}

// RunningBackends are those that a cluster changes between while it runs, the default first: all but none, with which
// pods are in another plugin's network.
func RunningBackends() []string {
	return slices.DeleteFunc(slices.Clone(NetworkBackends), func(name string) bool { return name == NetworkNone })
}

// ReadBackend is the back end that the cluster last gave the server with that folder; empty where it has given none
// that this program knows, or the file is damaged: it is written again when the cluster tells it.
func ReadBackend(serverDir string) string {
	var kept keptBackend
	_, err := atomicfile.ReadJSON(filepath.Join(serverDir, backendFile), &kept)
	if err != nil || !slices.Contains(RunningBackends(), kept.Backend) {
		return ""
	}
	return kept.Backend
}

// WriteBackend keeps it there; where the pod network is another plugin's nothing is kept.
func WriteBackend(serverDir, backend string) error {
	path := filepath.Join(serverDir, backendFile)
	if !slices.Contains(RunningBackends(), backend) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forgetting the cluster's network back end: %w", err)
		}
		return nil
	}
	if err := atomicfile.WriteJSON(path, keptBackend{backend}, 0o600); err != nil {
		return fmt.Errorf("keeping the cluster's network back end: %w", err)
	}
	return nil
}
