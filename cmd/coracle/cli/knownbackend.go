// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"path/filepath"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// KnownBackend returns the network back end that the cluster last sent to this machine's server, or else to its node.
// (A server may have no node.) It returns "" where neither has one.
func KnownBackend(serverDir, agentDir string) string {
	return cmp.Or(clusterconfig.ReadBackend(serverDir), cni.KnownBackend(filepath.Join(agentDir, "cni")))
}
