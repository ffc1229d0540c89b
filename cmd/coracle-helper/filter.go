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

// sandboxMark is how containerd marks the container of a pod's pause process (containerd's pkg/cri/annotations).
const sandboxMark = `"io.kubernetes.cri.container-type":"sandbox"`

// nativeFilter takes the processor's other architectures out of the seccomp filter of a pause process, whose program is
// ours and native: what it does by their system calls was allowed and ends it now. Each architecture costs 12 ms of
// processor time a pod, in which libseccomp makes the filter. Other containers keep their filters: a program in them
// may be of 32 bits.
func nativeFilter(bundle string) error {
	name := filepath.Join(bundle, "config.json")
	config, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Contains(config, []byte(sandboxMark)) {
		return nil // runc says what is wrong with a bundle
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
