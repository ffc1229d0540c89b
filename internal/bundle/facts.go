// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"strings"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/version"
)

// containerdDB and shim are containerd's own numbers: of the schema and the version of its database
// (core/metadata/db.go), and of the protocol with its shims (core/runtime/v2/shim.go). A test compares them.
const (
	containerdDB = "v1.4"
	shim         = 3
)

// FactsOfThis returns what this program says of itself, and texts that each build of its version contains.
func FactsOfThis() (f Facts, marks []string) {
	v := version.Get()
	f = Facts{
		Version: v.Coracle, Level: level.Newest(), OldestLevel: level.Oldest(), Kubernetes: level.Minor(level.Newest()),
		ContainerdDB: containerdDB, Shim: shim,
	}
	marks = []string{v.Coracle}
	if commit, _, _ := strings.Cut(v.Commit, " "); commit != "" {
		marks = append(marks, commit)
	}
	return f, marks
}
