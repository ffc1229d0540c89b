// SPDX-License-Identifier: Apache-2.0

package imports

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// maxContent is the size in bytes up to which a chart becomes content of its HelmChart. An object of the API may have
// 1.5 MiB, and base64 makes four bytes of three.
const maxContent = 1 << 20

// withCharts returns a manifest whose HelmCharts have the bundle's charts that they name by file. Such a HelmChart has
// the chart as content, so that all servers of the cluster have it. A large chart stays a file, and is named by its
// place below the folder of charts. The rest of the manifest is not changed.
func withCharts(manifest []byte, charts, name string) ([]byte, error) {
	if !bytes.Contains(manifest, []byte("HelmChart")) || !isDir(charts) {
		return manifest, nil
	}
	var out, doc bytes.Buffer
	end := func() error {
		text, err := documentWithCharts(doc.Bytes(), charts, name)
		out.Write(text)
		doc.Reset()
		return err
	}
	for line := range bytes.Lines(manifest) {
		if trimmed := bytes.TrimRight(line, " \t\r\n"); bytes.Equal(trimmed, []byte("---")) || bytes.HasPrefix(trimmed, []byte("--- #")) {
			if err := end(); err != nil {
				return nil, err
			}
			out.Write(line)
			continue
		}
		doc.Write(line)
	}
	err := end()
	return out.Bytes(), err
}

func documentWithCharts(text []byte, charts, name string) ([]byte, error) {
	var object map[string]any
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return text, nil // coracle says what is wrong when it applies the manifest
	}
	decoder := json.NewDecoder(bytes.NewReader(asJSON))
	decoder.UseNumber() // large numbers stay as they are
	if decoder.Decode(&object) != nil {
		return text, nil // the same
	}
	changed, err := addCharts(object, charts, name)
	if err != nil || !changed {
		return text, err
	}
	data, err := json.Marshal(object) // which is YAML, too
	return append(data, '\n'), err
}

// addCharts gives a HelmChart, or those of a list, its chart. It says whether the object was changed.
func addCharts(object map[string]any, charts, name string) (changed bool, err error) {
	items, _ := object["items"].([]any)
	for _, item := range items {
		if one, ok := item.(map[string]any); ok && err == nil {
			var now bool
			now, err = addCharts(one, charts, name)
			changed = changed || now
		}
	}
	version, _ := object["apiVersion"].(string)
	spec, _ := object["spec"].(map[string]any)
	file, _ := spec["chart"].(string)
	if object["kind"] != "HelmChart" || !strings.HasPrefix(version, "helm.cattle.io/") || spec["repo"] != nil ||
		filepath.Base(file) != file || filepath.Ext(file) != ".tgz" || err != nil {
		return changed, err
	}
	chart, err := os.ReadFile(filepath.Join(charts, file))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return changed, nil
	case err != nil:
		return false, err
	case len(chart) > maxContent:
		spec["chart"] = name + "/" + file
	default:
		delete(spec, "chart")
		spec["chartContent"] = base64.StdEncoding.EncodeToString(chart)
	}
	return true, nil
}
