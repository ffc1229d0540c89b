// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"path/filepath"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// KnownBackend is the network back end that the cluster last sent this machine: its server, which may be without a
// node, or else its node; empty where neither has one.
func KnownBackend(serverDir, agentDir string) string {
	return cmp.Or(clusterconfig.ReadBackend(serverDir), cni.KnownBackend(filepath.Join(agentDir, "cni")))
}
