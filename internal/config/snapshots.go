// SPDX-License-Identifier: Apache-2.0

package config

import (
	"path/filepath"
	"time"

	"github.com/robfig/cron/v3"
)

// Snapshots says when the cluster is saved, and where to.
type Snapshots struct {
	Dir       string
	Retention int
	KeyFile   string        // "" means that the server token is the key
	Schedule  cron.Schedule // nil: none are taken by schedule
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

// schedule returns nil when there is none.
func (r *reader) schedule() cron.Schedule {
	it := r.one("snapshot-schedule-cron")
	s, err := cron.ParseStandard(it.text)
	switch {
	case err != nil:
		r.bad(it.src, "%q is not a schedule; write it like %q: minute, hour, day of the month, month, day of the week (%v)", it.text, Lookup("snapshot-schedule-cron").Default, err)
	case s.Next(time.Now()).IsZero():
		r.bad(it.src, "%q never comes", it.text)
	case !r.boolean("disable-snapshots"):
		return s
	}
	return nil
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
