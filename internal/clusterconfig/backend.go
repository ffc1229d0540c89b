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
	// BackendConfigMap is the ConfigMap in kube-system with the cluster's back end. It is authoritative for all nodes.
	// A cluster begins with the setting of its first server.
	BackendConfigMap = "network-backend.coracle"
	// BackendData is the key in that ConfigMap. Its value is one of NetworkBackends.
	BackendData = "backend"
	// backendFile is the name of each server's copy, in the server's folder. A node has a copy of its own (cni).
	backendFile = "network-backend.json"
)

// BackendAnnotation on a Node is the back end that the node uses. Each node that can change it writes its own.
const BackendAnnotation = "coracle.dev/network-backend"

type keptBackend struct {
	Backend string `json:"backend"`
}

// RunningBackends returns the back ends between which a cluster can change while it runs, the default first. These are
// all except none, with which pods are in another plugin's network.
func RunningBackends() []string {
	return slices.DeleteFunc(slices.Clone(NetworkBackends), func(name string) bool { return name == NetworkNone })
}

// ReadBackend returns the back end that the cluster last sent to the server with this folder. It returns "" when there
// is none that this program knows, or when the file is damaged. A damaged file is written again when the cluster sends
// its back end.
func ReadBackend(serverDir string) string {
	var kept keptBackend
	_, err := atomicfile.ReadJSON(filepath.Join(serverDir, backendFile), &kept)
	if err != nil || !slices.Contains(RunningBackends(), kept.Backend) {
		return ""
	}
	return kept.Backend
}

// WriteBackend writes the back end to that file. If another plugin makes the pod network, it removes the file.
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
