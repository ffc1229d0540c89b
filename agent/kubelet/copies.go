// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	allocationstate "k8s.io/kubernetes/pkg/kubelet/allocation/state"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/checkpointmanager"
	cpustate "k8s.io/kubernetes/pkg/kubelet/cm/cpumanager/state"
	"k8s.io/kubernetes/pkg/kubelet/cm/devicemanager/checkpoint"
	drastate "k8s.io/kubernetes/pkg/kubelet/cm/dra/state"
	memorystate "k8s.io/kubernetes/pkg/kubelet/cm/memorymanager/state"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Below the kubelet's folder.
const (
	deviceCheckpoint = "device-plugins/kubelet_internal_checkpoint" // what device plugins gave to containers
	pulledFolder     = "image_manager/pulled"                       // records of images: which pods may use them
)

// stateFile is a file of the kubelet's state.
type stateFile struct {
	name string // below the kubelet's folder
	// read returns an error if upstream's own reader cannot read the file below a folder. The file must exist.
	read func(root string) error
}

// stateFiles returns the files that a kubelet reads at its start, except the records of pulls.
func stateFiles(c *kubeletconfig.KubeletConfiguration) []stateFile {
	quiet := logr.Discard() // the kubelet logs the same a moment later
	files := []stateFile{
		{"cpu_manager_state", func(root string) error {
			_, err := cpustate.NewCheckpointState(quiet, root, "cpu_manager_state", c.CPUManagerPolicy, nil)
			return err
		}},
		{"memory_manager_state", func(root string) error {
			_, err := memorystate.NewCheckpointState(quiet, root, "memory_manager_state", c.MemoryManagerPolicy)
			return err
		}},
		{"dra_manager_state", func(root string) error {
			checkpoints, err := drastate.NewCheckpointer(root, "dra_manager_state")
			if err == nil {
				_, err = checkpoints.GetOrCreate()
			}
			return err
		}},
		{deviceCheckpoint, func(root string) error {
			dir, name := filepath.Split(filepath.Join(root, deviceCheckpoint))
			checkpoints, err := checkpointmanager.NewCheckpointManager(dir)
			if err == nil {
				err = checkpoints.GetCheckpoint(name, checkpoint.New(nil, nil))
			}
			return err
		}},
	}
	for _, name := range []string{"allocated_pods_state", "actuated_pods_state"} {
		files = append(files, stateFile{name, func(root string) error {
			_, err := allocationstate.NewStateCheckpoint(quiet, root, name)
			return err
		}})
	}
	return files
}

// decodable returns the names of the records of pulls below a kubelet's folder that upstream can decode.
func decodable(root string) (map[string]bool, error) {
	records, err := pullmanager.NewFSPullRecordsAccessor(logr.Discard(), root)
	if err != nil {
		return nil, err
	}
	readable, _ := records.ListImagePulledRecords() // its error is about those that it cannot decode
	names := map[string]bool{}
	for _, r := range readable {
		names[recordName(r.ImageRef)] = true
	}
	return names, nil
}

// unreadable returns those of the kubelet's files below root that this kubelet cannot read, and whose copies it can,
// each with the reason.
func unreadable(root, copies string, c *kubeletconfig.KubeletConfiguration) (map[string]error, error) {
	reasons := map[string]error{}
	for _, f := range stateFiles(c) {
		if !isFile(filepath.Join(root, f.name)) || !isFile(filepath.Join(copies, f.name)) {
			continue
		}
		if err := f.read(root); err != nil && f.read(copies) == nil {
			reasons[f.name] = err
		}
	}
	if entries, err := os.ReadDir(filepath.Join(copies, pulledFolder)); err != nil || len(entries) == 0 {
		return reasons, nil // there are no records
	}
	now, err := decodable(root)
	if err != nil {
		return nil, err
	}
	before, err := decodable(copies)
	if err != nil {
		return nil, err
	}
	for name := range before {
		if file := filepath.Join(pulledFolder, name); !now[name] && isFile(filepath.Join(root, file)) {
			reasons[file] = errors.New("this record of an image cannot be decoded")
		}
	}
	return reasons, nil
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// putBack puts back copies of the kubelet's state that were made when this version of coracle ran last: of those files
// alone that this kubelet cannot read, since another version has written them. The others stay, as they have what was
// given to pods since. Then the copies are removed: what happens later is this version's own.
func putBack(log klog.Logger, root, copies string, c *kubeletconfig.KubeletConfiguration) error {
	if fi, err := os.Stat(copies); err != nil || !fi.IsDir() {
		return nil
	}
	reasons, err := unreadable(root, copies, c)
	if err != nil {
		return fmt.Errorf("kubelet: read what another version has written: %w", err)
	}
	for name, reason := range reasons {
		data, err := os.ReadFile(filepath.Join(copies, name))
		if err == nil {
			err = atomicfile.Write(filepath.Join(root, name), data, 0o600)
		}
		if err != nil {
			return fmt.Errorf("kubelet: put a file back that another version has written: %w", err)
		}
		log.Error(reason, "A file of the kubelet's that another version of coracle has written cannot be read; it is as before that version again",
			"file", filepath.Join(root, name))
	}
	if err := os.RemoveAll(copies); err != nil {
		return fmt.Errorf("kubelet: remove the copies of its files: %w", err)
	}
	return nil
}
