// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	allocationstate "k8s.io/kubernetes/pkg/kubelet/allocation/state"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/checkpointmanager"
	cpustate "k8s.io/kubernetes/pkg/kubelet/cm/cpumanager/state"
	"k8s.io/kubernetes/pkg/kubelet/cm/devicemanager/checkpoint"
	drastate "k8s.io/kubernetes/pkg/kubelet/cm/dra/state"
	memorystate "k8s.io/kubernetes/pkg/kubelet/cm/memorymanager/state"
	"k8s.io/utils/cpuset"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// static are the policies with which a kubelet gives processors and memory to single containers.
var static = &kubeletconfig.KubeletConfiguration{CPUManagerPolicy: "static", MemoryManagerPolicy: "Static"}

// cpus is the state of a kubelet's manager of processors, as its start reads it.
func cpus(root string) (cpustate.State, error) {
	return cpustate.NewCheckpointState(klog.Background(), root, "cpu_manager_state", "static", nil)
}

// nodeState makes the state of a kubelet that has given processors to a container, by upstream's own writers.
func nodeState(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	given := testenv.Must(cpus(root))(t)
	given.SetCPUSet("old", "c", cpuset.New(2, 3))
	memory := testenv.Must(memorystate.NewCheckpointState(klog.Background(), root, "memory_manager_state", "Static"))(t)
	memory.SetMemoryBlocks("old", "c", []memorystate.Block{{NUMAAffinity: []int{0}, Type: v1.ResourceMemory, Size: 1 << 20}})
	for _, name := range []string{"allocated_pods_state", "actuated_pods_state"} {
		pods := testenv.Must(allocationstate.NewStateCheckpoint(klog.Background(), root, name))(t)
		testenv.NoError(t, pods.SetContainerResources(klog.Background(), "old", "c", v1.ResourceRequirements{}))
	}
	_, err := testenv.Must(drastate.NewCheckpointer(root, "dra_manager_state"))(t).GetOrCreate()
	testenv.NoError(t, err)
	devices := testenv.Must(checkpointmanager.NewCheckpointManager(filepath.Join(root, "device-plugins")))(t)
	testenv.NoError(t, devices.CreateCheckpoint("kubelet_internal_checkpoint", checkpoint.New([]checkpoint.PodDevicesEntry{{PodUID: "old"}}, nil)))
	newPuller(t, root).pulls.RecordImagePulled(t.Context(), private, "sha256:private", credentialsOf("other"))
	return root
}

// copied is a copy of a kubelet's folder, as an upgrade makes it before the switch to another version.
func copied(t *testing.T, root string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "kubelet")
	testenv.NoError(t, os.CopyFS(to, os.DirFS(root)))
	return to
}

// TestStateOfAnotherVersionStays: what a version that went back gave to pods of its own stays theirs, as long as this
// one can read it.
func TestStateOfAnotherVersionStays(t *testing.T) {
	root := nodeState(t)
	copies := copied(t, root)
	testenv.Must(cpus(root))(t).SetCPUSet("new", "c", cpuset.New(4, 5)) // in the trial
	testenv.NoError(t, putBack(klog.Background(), root, copies, static))
	given, _ := testenv.Must(cpus(root))(t).GetCPUSet("new", "c")
	testenv.Equal(t, given.String(), "4-5", "processors of a pod of the trial:")
	testenv.ErrorIs(t, testenv.Err(os.Stat(copies)), fs.ErrNotExist)
	testenv.NoError(t, putBack(klog.Background(), root, copies, static), "without copies")
	testenv.NoError(t, putBack(klog.Background(), root, "", static), "outside of slots")
}

// TestUnreadableStateIsPutBackOnce: each file that this kubelet cannot read is as before the other version again, and
// no other one.
func TestUnreadableStateIsPutBackOnce(t *testing.T) {
	read := map[string]func(root string) error{}
	for _, f := range stateFiles(static) {
		read[f.name] = f.read
	}
	testenv.Equal(t, len(read), 6, "files:")
	checksum := regexp.MustCompile(`("[a-zA-Z]*[cC]hecksum": ?)[0-9]+`)
	for name := range read {
		for form, change := range map[string]func(string) string{
			"another checksum": func(text string) string { return checksum.ReplaceAllString(text, "${1}7") },
			"no JSON":          func(text string) string { return "\x01" + text },
		} {
			t.Run(name+" has "+form, func(t *testing.T) {
				root := nodeState(t)
				copies := copied(t, root)
				before := string(testenv.Must(os.ReadFile(filepath.Join(root, name)))(t))
				testenv.NoError(t, read[name](root), "as upstream wrote it")
				if name != "cpu_manager_state" {
					testenv.Must(cpus(root))(t).SetCPUSet("new", "c", cpuset.New(4, 5))
				}
				broken := change(before)
				testenv.True(t, broken != before, "%s was not changed", before)
				testenv.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(broken), 0o600))
				testenv.Fails(t, read[name](root), "upstream reads %s", broken)

				testenv.NoError(t, putBack(klog.Background(), root, copies, static))
				testenv.NoError(t, read[name](root), "afterwards")
				testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(root, name)))(t)), before, "it has")
				if name != "cpu_manager_state" {
					given, _ := testenv.Must(cpus(root))(t).GetCPUSet("new", "c")
					testenv.Equal(t, given.String(), "4-5", "processors of a pod of the trial:")
				}

				testenv.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(broken), 0o600))
				testenv.NoError(t, putBack(klog.Background(), root, copies, static))
				testenv.Fails(t, read[name](root), "it was put back a second time")
			})
		}
	}
}

// TestDamagedCopyIsNotPutBack: it would be of no use.
func TestDamagedCopyIsNotPutBack(t *testing.T) {
	root := nodeState(t)
	copies := copied(t, root)
	for _, dir := range []string{root, copies} {
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, "cpu_manager_state"), []byte(dir), 0o600))
	}
	testenv.NoError(t, putBack(klog.Background(), root, copies, static))
	testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(root, "cpu_manager_state")))(t)), root, "it has")
}

// TestUndecodableRecordOfAnImageIsPutBack: a kubelet that cannot decode a record needs the registry for the image,
// which may not be there. Records of the trial stay: without them each pod could use the image.
func TestUndecodableRecordOfAnImageIsPutBack(t *testing.T) {
	root := nodeState(t)
	copies := copied(t, root)
	newPuller(t, root).pulls.RecordImagePulled(t.Context(), imported, "sha256:imported", credentialsOf("tenant")) // in the trial
	record := filepath.Join(root, pulledFolder, recordName("sha256:private"))
	text := string(testenv.Must(os.ReadFile(record))(t))
	testenv.NoError(t, os.WriteFile(record, []byte(strings.Replace(text, "/v1beta1", "/v2", 1)), 0o600))
	pull := func(p *puller) bool { // says whether the pod that has pulled the image needs the registry again
		return testenv.Must(p.pulls.MustAttemptImagePull(t.Context(), private, "sha256:private",
			func() ([]kubeletconfig.ImagePullSecret, *kubeletconfig.ImagePullServiceAccount, error) {
				return credentialsOf("other").KubernetesSecrets, nil, nil
			}))(t)
	}
	testenv.True(t, pull(newPuller(t, root)), "upstream decodes a record of a version that it does not know")

	testenv.NoError(t, putBack(klog.Background(), root, copies, static))
	p := newPuller(t, root)
	testenv.False(t, pull(p), "the registry is needed")
	testenv.Equal(t, string(testenv.Must(os.ReadFile(record))(t)), text, "record:")
	testenv.False(t, p.may(t, imported, v1.PullIfNotPresent), "a pod without credentials may use an image that was pulled in the trial")
}
