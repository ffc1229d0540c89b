// SPDX-License-Identifier: Apache-2.0

package config

import (
	"path/filepath"
)

// Snapshots says when the cluster is saved, and where to.
type Snapshots struct {
	Dir       string
	Retention int
	KeyFile   string // "" means that the server token is the key
}

func (r *reader) snapshots(p Paths) Snapshots {
	s := Snapshots{
		Dir:       r.path("snapshot-dir"),
		Retention: r.integer("snapshot-retention", 1, 10_000),
		KeyFile:   r.existing("snapshot-key-file"),
	}
	if s.Dir == "" {
		s.Dir = filepath.Join(p.DataDir, "snapshots")
	}
	return s
}

// SnapshotTool is what the commands below coracle snapshot are told.
type SnapshotTool struct {
	Tool
	Snapshots Snapshots
	Token     string // "" means: use the one in Paths.TokenFile
}

// LoadSnapshotTool gathers and checks these settings. The error, if any, is of type [Problems].
func LoadSnapshotTool(s Sources) (*SnapshotTool, error) {
	vals, _, problems := s.gather(SnapshotCommand)
	r := &reader{vals: vals, problems: problems}
	t := &SnapshotTool{Tool: Tool{Paths: r.paths()}, Token: r.secret("token", "token-file")}
	t.Snapshots = r.snapshots(t.Paths)
	return t, r.problems.orNil()
}
