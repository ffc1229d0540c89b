// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/coracle-k8s/coracle/internal/s3settings"
)

// Snapshots says when the cluster is saved, and where to.
type Snapshots struct {
	Dir       string
	Retention int
	KeyFile   string        // "" means that the server token is the key
	Schedule  cron.Schedule // nil: none are taken by schedule

	// S3 says whether they are kept in an object store too; its settings are S3Settings and, behind those, the ones in
	// the Secret S3Secret.
	S3         bool
	S3Settings map[string]string // by the names in package s3settings, those that were given
	S3Secret   string
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
	s.S3 = r.boolean("snapshot-s3")
	s.S3Settings = r.s3Settings()
	return s
}

// s3Flags are the settings for S3, by their names in package s3settings.
var s3Flags = map[string]string{
	s3settings.Endpoint: "snapshot-s3-endpoint", s3settings.Bucket: "snapshot-s3-bucket", s3settings.Folder: "snapshot-s3-folder",
	s3settings.Region: "snapshot-s3-region", s3settings.Lookup: "snapshot-s3-bucket-lookup-type",
	s3settings.AccessKey: "snapshot-s3-access-key", s3settings.SecretKey: "snapshot-s3-secret-key",
	s3settings.SessionToken: "snapshot-s3-session-token",
	s3settings.EndpointCA:   "snapshot-s3-endpoint-ca", s3settings.SkipVerify: "snapshot-s3-skip-ssl-verify",
	s3settings.Insecure: "snapshot-s3-insecure",
	s3settings.Proxy:    "snapshot-s3-proxy", s3settings.Timeout: "snapshot-s3-timeout", s3settings.Retention: "snapshot-s3-retention",
}

// S3FlagNames are the names of the settings that say where the object store is, sorted.
func S3FlagNames() []string { return slices.Sorted(maps.Values(s3Flags)) }

// s3Settings are those that were given; of the authority's file, the content.
func (r *reader) s3Settings() map[string]string {
	out := map[string]string{}
	for name, flag := range s3Flags {
		if r.given(flag) {
			out[name] = r.str(flag)
		}
	}
	if file := r.existing("snapshot-s3-endpoint-ca"); file != "" {
		text, err := os.ReadFile(file)
		if err == nil {
			out[s3settings.EndpointCA] = string(text)
		} // existing has complained
	}
	return out
}

// AskedS3 are the settings for S3 among the flags that were given, nil if there are none. Whether they work is the
// server's to say, which has the others. The error, if any, is of type [Problems].
func (f *Flags) AskedS3() (*s3settings.Asked, error) {
	r := &reader{vals: f.given}
	asked := &s3settings.Asked{Values: r.s3Settings()}
	if r.given("snapshot-s3") {
		on := r.boolean("snapshot-s3")
		asked.On = &on
	}
	if asked.On == nil && len(asked.Values) == 0 {
		asked = nil
	}
	return asked, r.problems.orNil()
}

// checkS3 finds mistakes in the settings for S3. What may come from the Secret is not missing.
func (r *reader) checkS3(s *Snapshots) {
	if !s.S3 {
		if s.S3Secret != "" {
			r.bad(r.src("snapshot-s3-config-secret"), "needs --snapshot-s3")
		}
		return
	}
	values := s.S3Settings
	if s.S3Secret != "" {
		values = maps.Clone(values)
		if values[s3settings.Bucket] == "" {
			values[s3settings.Bucket] = "in-the-secret"
		}
	}
	_, err := s3settings.Parse(values)
	for _, e := range s3settings.Each(err) {
		r.bad(r.src(s3Flags[e.Name]), "%v", e.Err)
	}
}

// schedule returns nil when there is none.
func (r *reader) schedule() cron.Schedule {
	it := r.one("snapshot-schedule-cron")
	s, err := cron.ParseStandard(it.text)
	switch {
	case err != nil:
		r.bad(it.src, "%q is not a schedule; write it like %q: minute, hour, day of the month, month, day of the week (%v)", it.text,
			Lookup("snapshot-schedule-cron").Default, err)
	case s.Next(time.Now()).IsZero():
		r.bad(it.src, "%q never comes", it.text)
	case !r.boolean("disable-snapshots"):
		return s
	}
	return nil
}

// SnapshotTool holds the settings of the commands below coracle snapshot.
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
	r.checkS3(&t.Snapshots)
	return t, r.problems.orNil()
}
