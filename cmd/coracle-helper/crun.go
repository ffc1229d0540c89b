// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"
)

// crunSpecVersion is the newest version of the OCI runtime specification that each crun accepts. Those before 1.14.3
// refuse versions that they do not know (1.8.1 those after 1.1.0), and containerd writes 1.3.0. No crun treats the
// newer fields according to the version.
const crunSpecVersion = "1.0.2"

// lowerSpecVersion writes crunSpecVersion into the bundle's config.json if crun is to run the container.
func lowerSpecVersion(r *taskapi.CreateTaskRequest) error {
	if r.Options == nil {
		return nil
	}
	var o options.Options
	if err := typeurl.UnmarshalTo(r.Options, &o); err != nil || filepath.Base(o.BinaryName) != "crun" {
		return nil // upstream's Create returns the error
	}
	path := filepath.Join(r.Bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the container's configuration: %w", err)
	}
	var spec map[string]json.RawMessage
	var version string
	if err := json.Unmarshal(data, &spec); err != nil {
		return fmt.Errorf("read the container's configuration: %w", err)
	}
	if err := json.Unmarshal(spec["ociVersion"], &version); err != nil || strings.HasPrefix(version, "1.0.") {
		return err
	}
	spec["ociVersion"] = json.RawMessage(`"` + crunSpecVersion + `"`)
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
