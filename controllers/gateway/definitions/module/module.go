// SPDX-License-Identifier: Apache-2.0

// Package module reads the CustomResourceDefinitions in the Gateway API's module, for the generator of package
// definitions and its test.
package module

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// kinds are the served kinds, by the names of their files.
var kinds = []string{"backendtlspolicies", "gatewayclasses", "gateways", "grpcroutes", "httproutes", "listenersets", "referencegrants",
	"tlsroutes"}

// Read returns the definitions of the standard channel as a list in JSON. It leaves out versions that are not served.
// These are for clusters that have stored objects in them, whose definitions are not coracle's.
func Read() ([]byte, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		return nil, fmt.Errorf("asking where the module of the Gateway API is: %w", err)
	}
	var out []map[string]any
	for _, kind := range kinds {
		path := filepath.Join(strings.TrimSpace(string(dir)), "config/crd/standard/gateway.networking.k8s.io_"+kind+".yaml")
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading a definition of the Gateway API: %w", err)
		}
		var o map[string]any
		if err := yaml.Unmarshal(text, &o); err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		delete(o, "status")
		spec, ok := o["spec"].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s has no spec", path)
		}
		versions, ok := spec["versions"].([]any)
		if !ok {
			return nil, fmt.Errorf("%s has no versions", path)
		}
		spec["versions"] = slices.DeleteFunc(versions, func(v any) bool {
			version, ok := v.(map[string]any)
			return ok && version["served"] == false && version["storage"] == false
		})
		out = append(out, o)
	}
	return json.Marshal(out)
}
