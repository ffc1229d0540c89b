// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/robfig/cron/v3"
)

// Snapshots holds the settings for snapshots of the cluster.
type Snapshots struct {
	Dir       string
	Retention int
	KeyFile   string        // "" means that the server token is the key
	Schedule  cron.Schedule // nil: no scheduled snapshots

	// S3 says whether snapshots are stored in an object store too. The settings of that store are S3Settings. They
	// override the settings in the Secret named by S3Secret.
	S3         bool
	S3Settings map[string]string // those that were given, by their names (S3Endpoint and so on)
	S3Secret   string
}

func (r *reader) snapshots(p Paths) Snapshots {
	s := Snapshots{
		Dir:       r.path("snapshot-dir"),
		Retention: r.integer("snapshot-retention", 1, 10_000),
		KeyFile:   r.existing("snapshot-key-file"),
	}
	s.Dir = cmp.Or(s.Dir, filepath.Join(p.DataDir, "snapshots"))
	s.S3 = r.boolean("snapshot-s3")
	s.S3Settings = r.s3Settings()
	return s
}

// s3Flags maps the names of the settings for S3 to their flags.
var s3Flags = map[string]string{
	S3Endpoint: "snapshot-s3-endpoint", S3Bucket: "snapshot-s3-bucket", S3Folder: "snapshot-s3-folder",
	S3Region: "snapshot-s3-region", S3Lookup: "snapshot-s3-bucket-lookup-type",
	S3AccessKey: "snapshot-s3-access-key", S3SecretKey: "snapshot-s3-secret-key",
	S3SessionToken: "snapshot-s3-session-token",
	S3EndpointCA:   "snapshot-s3-endpoint-ca", S3SkipVerify: "snapshot-s3-skip-ssl-verify",
	S3Insecure: "snapshot-s3-insecure",
	S3Proxy:    "snapshot-s3-proxy", S3Timeout: "snapshot-s3-timeout", S3Retention: "snapshot-s3-retention",
}

// S3FlagNames returns the names of the flags that describe the object store, sorted.
func S3FlagNames() []string { return slices.Sorted(maps.Values(s3Flags)) }

// s3Settings returns the given settings for S3. For the file with the authority, it returns the content.
func (r *reader) s3Settings() map[string]string {
	out := map[string]string{}
	for name, flag := range s3Flags {
		if r.isSet(flag) {
			out[name] = r.text(flag)
		}
	}
	if file := r.existing("snapshot-s3-endpoint-ca"); file != "" {
		text, err := os.ReadFile(file)
		if err == nil {
			out[S3EndpointCA] = string(text)
		} // existing has complained
	}
	return out
}

// AskedS3 returns the settings for S3 among the given flags, and nil if there are none. It does not check them
// together: the server does, because it has the other settings. The error, if any, is of type [Problems].
func (f *Flags) AskedS3() (*AskedS3, error) {
	r := &reader{vals: f.values}
	asked := &AskedS3{Values: r.s3Settings()}
	if r.isSet("snapshot-s3") {
		on := r.boolean("snapshot-s3")
		asked.On = &on
	}
	if asked.On == nil && len(asked.Values) == 0 {
		asked = nil
	}
	return asked, r.problems.orNil()
}

// checkS3 reports mistakes in the settings for S3. A missing bucket is no mistake when a Secret is named, because the
// Secret may name the bucket.
func (r *reader) checkS3(s *Snapshots) {
	if !s.S3 {
		if s.S3Secret != "" {
			r.addProblem(r.src("snapshot-s3-config-secret"), "needs --snapshot-s3")
		}
		return
	}
	values := s.S3Settings
	if s.S3Secret != "" {
		values = maps.Clone(values)
		values[S3Bucket] = cmp.Or(values[S3Bucket], "in-the-secret")
	}
	_, err := ParseS3(values)
	for _, e := range S3Errors(err) {
		r.addProblem(r.src(s3Flags[e.Name]), "%v", e.Err)
	}
}

// schedule returns the schedule of snapshots. It returns nil when there is none.
func (r *reader) schedule() cron.Schedule {
	it := r.single("snapshot-schedule-cron")
	s, err := cron.ParseStandard(it.text)
	switch {
	case err != nil:
		r.addProblem(it.src, "%q is not a schedule; write it like %q: minute, hour, day of the month, month, day of the week (%v)", it.text,
			Lookup("snapshot-schedule-cron").Default, err)
	case s.Next(time.Now()).IsZero():
		r.addProblem(it.src, "%q never comes", it.text)
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

// LoadSnapshotTool reads and checks the settings of these commands. The error, if any, is of type [Problems].
func LoadSnapshotTool(s Sources) (*SnapshotTool, error) {
	vals, _, problems := s.gather(SnapshotCommand)
	r := &reader{vals: vals, problems: problems}
	t := &SnapshotTool{Tool: Tool{Paths: r.paths()}, Token: r.secret("token", "token-file")}
	t.Snapshots = r.snapshots(t.Paths)
	r.checkS3(&t.Snapshots)
	return t, r.problems.orNil()
}
