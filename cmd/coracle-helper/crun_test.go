// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestCrunGetsAVersionThatItAccepts: the version is lowered for crun alone, and the rest of the configuration stays.
func TestCrunGetsAVersionThatItAccepts(t *testing.T) {
	const config = `{"hooks":{"a":9007199254740993},"ociVersion":"1.3.0"}`
	for _, c := range []struct{ binary, version, want string }{
		{"/usr/bin/crun", "1.3.0", "1.0.2"},
		{"/usr/bin/crun", "1.0.1", "1.0.1"},
		{"/run/bin/runc", "1.3.0", "1.3.0"},
		{"/usr/bin/nvidia-container-runtime", "1.3.0", "1.3.0"},
	} {
		s, inner, bundle := newService(t)
		path := filepath.Join(bundle, "config.json")
		spec := map[string]json.RawMessage{}
		testenv.NoError(t, json.Unmarshal([]byte(config), &spec))
		spec["ociVersion"] = json.RawMessage(`"` + c.version + `"`)
		testenv.NoError(t, os.WriteFile(path, testenv.Must(json.Marshal(spec))(t), 0o600))
		chosen := testenv.Must(typeurl.MarshalAnyToProto(&options.Options{BinaryName: c.binary}))(t)
		testenv.Must(s.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c", Bundle: bundle, Options: chosen}))(t)
		testenv.True(t, inner.created != nil, "no container was made")
		want := `{"hooks":{"a":9007199254740993},"ociVersion":"` + c.want + `"}`
		testenv.Equal(t, string(testenv.Must(os.ReadFile(path))(t)), want, "%s, %s:", c.binary, c.version)
	}
	s, inner, bundle := newService(t)
	chosen := testenv.Must(typeurl.MarshalAnyToProto(&options.Options{BinaryName: "/usr/bin/crun"}))(t)
	_, err := s.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c", Bundle: bundle, Options: chosen})
	testenv.WantError(t, err, "read the container's configuration")
	testenv.True(t, inner.created == nil, "a container without a configuration was made")
}
