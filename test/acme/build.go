// SPDX-License-Identifier: Apache-2.0

// Package acme builds the programs with which certificates by ACME are tested: pebble, the test authority of Let's
// Encrypt, and its DNS server.
//
// They are in a module of their own, in the folder pebble, so that what they need does not become what coracle needs.
package acme

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The programs.
const (
	Pebble = "github.com/letsencrypt/pebble/v2/cmd/pebble"
	DNS    = "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv"
)

// Build builds a program into a file.
func Build(t testing.TB, program, file string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/coracle-k8s/coracle/test/acme").Output()
	if err != nil {
		t.Fatalf("find the folder of this package: %v", err)
	}
	c := exec.Command("go", "build", "-ldflags", "-s -w", "-o", file, program)
	c.Dir = filepath.Join(strings.TrimSpace(string(out)), "pebble")
	c.Env = append(c.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", program, err, out)
	}
}
