// SPDX-License-Identifier: Apache-2.0

// Package charts makes Helm charts for tests and serves them: as a repository over HTTP (index.yaml and archives) and
// as an OCI registry, both without anything from outside.
package charts

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Chart is a chart's files by their path in it, such as "templates/web.yaml".
type Chart map[string]string

// New returns a chart without templates. extra is more YAML for its Chart.yaml.
func New(name, version, extra string) Chart {
	return Chart{"Chart.yaml": fmt.Sprintf("apiVersion: v2\nname: %s\nversion: %s\nappVersion: %q\n%s\n", name, version, "app-"+version, extra)}
}

// With returns a copy of the chart with one more file, or another text of one.
func (c Chart) With(path, text string) Chart {
	c = maps.Clone(c)
	c[path] = text
	return c
}

// Archive packs the chart as helm package does. The same chart gives the same bytes.
func (c Chart) Archive() []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	t := tar.NewWriter(z)
	for _, path := range slices.Sorted(maps.Keys(c)) {
		must(t.WriteHeader(&tar.Header{Name: "chart/" + path, Mode: 0o644, Size: int64(len(c[path])), ModTime: time.Unix(1, 0), Typeflag: tar.TypeReg}))
		_, err := t.Write([]byte(c[path]))
		must(err)
	}
	must(t.Close())
	must(z.Close())
	return out.Bytes()
}

// must is for writing into memory, which does not fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
