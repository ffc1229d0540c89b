//go:build twolevels

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// recordPipe keeps the Service proxy waiting.
var recordPipe *os.File

// keepRules keeps the Service proxy from writing rules, so that those of the version before stay: the proxy reads the
// record of its rules from a pipe that is never written. The record is back before another version needs it.
func keepRules() {
	record := nft.ServiceRecordIn("/run/coracle")
	saved := record + ".saved"
	fail(os.Rename(record, saved))
	fail(unix.Mkfifo(record, 0o600))
	go func() {
		for recordPipe == nil {
			time.Sleep(10 * time.Millisecond)
			recordPipe, _ = os.OpenFile(record, os.O_WRONLY|unix.O_NONBLOCK, 0) // ENXIO without a reader (fifo(7))
		}
		fail(os.Rename(saved, record))
	}()
}

// breakShim gives the shim of one container a version that containerd cannot speak to.
func breakShim() {
	bundles, err := filepath.Glob("/run/coracle/containerd/io.containerd.runtime.v2.task/k8s.io/*")
	fail(err)
	for _, bundle := range bundles {
		config, err := os.ReadFile(filepath.Join(bundle, "config.json"))
		fail(err)
		if bytes.Contains(config, []byte(`"io.kubernetes.cri.container-type":"container"`)) {
			replace(filepath.Join(bundle, "bootstrap.json"), `"version":3`, `"version":4`)
			return
		}
	}
	panic("no container runs")
}

// changeState writes a file of the kubelet's in a form that no version can read, and ends.
func changeState() {
	replace("/var/lib/kubelet/cpu_manager_state", `"dataChecksum":`, `"dataChecksum":1`)
	os.Exit(7)
}

// replace replaces a part of a file, which has to be there.
func replace(file, part, by string) {
	text, err := os.ReadFile(file)
	fail(err)
	if !bytes.Contains(text, []byte(part)) {
		panic(file + " has no " + part + ": " + string(text))
	}
	fail(os.WriteFile(file, bytes.Replace(text, []byte(part), []byte(by), 1), 0o600))
}

func fail(err error) {
	if err != nil {
		panic(err)
	}
}
