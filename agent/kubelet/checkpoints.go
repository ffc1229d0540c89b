// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/klog/v2"
)

// setAsideCheckpoints renames the kubelet's checkpoints that are no JSON: with one of them upstream's kubelet ends at
// each start. Without it the kubelet starts as after its first boot: containers that run lose processors or memory of a
// NUMA node that a static policy has given to them, until they start again. A file that cannot be read stays, since
// that says nothing about its content.
func setAsideCheckpoints(log klog.Logger, root string) error {
	files, err := filepath.Glob(filepath.Join(root, "*_state"))
	if err != nil {
		return fmt.Errorf("kubelet: list its checkpoints: %w", err)
	}
	var errs []error
	for _, file := range append(files, filepath.Join(root, deviceCheckpoint)) {
		data, err := os.ReadFile(file) // an error for a folder, too
		if err != nil || json.Valid(data) {
			continue
		}
		if err := os.Rename(file, file+".damaged"); err != nil {
			errs = append(errs, fmt.Errorf("kubelet: set a damaged checkpoint aside: %w", err))
			continue
		}
		log.Error(errors.New("it is no JSON: a disk has lost or changed it"),
			"A checkpoint of the kubelet was set aside; containers that run may lose processors or devices that were given to them alone",
			"file", file, "now", file+".damaged")
	}
	return errors.Join(errs...)
}
