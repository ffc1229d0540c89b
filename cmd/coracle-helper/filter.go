// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// sandboxMark is the annotation that containerd puts on the container of a pod's pause process (containerd's
// pkg/cri/annotations).
const sandboxMark = `"io.kubernetes.cri.container-type":"sandbox"`

// nativeFilter removes the processor's secondary architectures from the seccomp filter of a pause process. The pause
// program is coracle's and native. With the shorter filter, a system call of another architecture ends the process;
// before, such calls were allowed. Each architecture costs 12 ms of processor time per pod, which libseccomp needs to
// make the filter. Other containers keep their filters, because their programs may be 32-bit.
func nativeFilter(bundle string) error {
	name := filepath.Join(bundle, "config.json")
	config, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Contains(config, []byte(sandboxMark)) {
		return nil // runc reports what is wrong with a bundle
	}
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(config, &spec); err != nil {
		return err
	}
	if spec.Linux == nil || spec.Linux.Seccomp == nil {
		return nil
	}
	spec.Linux.Seccomp.Architectures = nil // runc adds the processor's own
	if config, err = json.Marshal(&spec); err != nil {
		return err
	}
	return os.WriteFile(name, config, 0o600)
}
