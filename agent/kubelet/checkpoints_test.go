// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm/dra/state"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUnreadableCheckpointsAreSetAside: upstream's kubelet ends at each start while one of its checkpoints is empty or
// cut off. Others, and files that are not checkpoints, stay.
func TestUnreadableCheckpointsAreSetAside(t *testing.T) {
	const sound = `{"data":"{}","checksum":1}`
	files := map[string]string{
		"dra_manager_state": "", "cpu_manager_state": sound[:9], "memory_manager_state": strings.Repeat("\x00", 40),
		"allocated_pods_state": sound, "device-plugins/kubelet_internal_checkpoint": "{", "pods/one": "", "device-plugins/other": "",
	}
	damaged := []string{"dra_manager_state", "cpu_manager_state", "memory_manager_state", "device-plugins/kubelet_internal_checkpoint"}
	root := t.TempDir()
	testenv.NoError(t, os.MkdirAll(filepath.Join(root, "a_folder_of_a_state", "in_state"), 0o700))
	for name, text := range files {
		testenv.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o700))
		testenv.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o600))
	}
	read := func() error { // as the kubelet's start does
		c, err := state.NewCheckpointer(root, "dra_manager_state")
		if err == nil {
			_, err = c.GetOrCreate()
		}
		return err
	}
	testenv.Fails(t, read(), "upstream starts with an empty checkpoint: is setAsideCheckpoints still needed?")

	testenv.NoError(t, setAsideCheckpoints(klog.Background(), root))
	testenv.NoError(t, read(), "the checkpoint after it was set aside")
	for name, text := range files {
		want := name
		if slices.Contains(damaged, name) {
			want += ".damaged"
		}
		testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(root, want)))(t)), text, "%s holds", want)
	}
	testenv.NoError(t, setAsideCheckpoints(klog.Background(), root), "a second start")
}
