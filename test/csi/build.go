// SPDX-License-Identifier: Apache-2.0

// Package csi builds the programs with which CSI drivers are tested: a driver, upstream's external-provisioner and
// external-attacher for it, and csi-sanity.
//
// csi-sanity is in a module of its own, in the folder sanity: it is made for another version of CSI's API than
// Kubernetes 1.37 is built with.
package csi

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The programs.
const (
	Attacher    = "github.com/coracle-k8s/coracle/test/csi/attacher"
	Driver      = "github.com/coracle-k8s/coracle/test/csi/driver"
	Provisioner = "github.com/coracle-k8s/coracle/test/csi/provisioner"
	Sanity      = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"
)

// tags are the same everywhere, so that packages are compiled once.
const tags = "no_btrfs no_zfs no_devmapper grpcnotrace"

// Build builds a program into a file.
func Build(t testing.TB, program, file string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/coracle-k8s/coracle/test/csi").Output()
	if err != nil {
		t.Fatalf("find the folder of this package: %v", err)
	}
	c := exec.Command("go", "build", "-tags", tags, "-ldflags", "-s -w", "-o", file, program)
	if c.Dir = strings.TrimSpace(string(out)); program == Sanity {
		c.Dir = filepath.Join(c.Dir, "sanity")
	}
	c.Env = append(c.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", program, err, out)
	}
}
