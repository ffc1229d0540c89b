// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/internal/imagetar"
)

// ExtensionImage holds upstream's sample API server, which serves the group wardle.example.com.
const ExtensionImage = "coracle.test/sample-apiserver:1"

// WriteExtensionImage builds it from its module and writes it to a docker archive.
func WriteExtensionImage(t testing.TB, path string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "sample-apiserver")
	// With coracle's own tags nearly all of it is in the build cache.
	c := exec.Command("go", "build", "-tags", "no_btrfs no_zfs no_devmapper grpcnotrace", "-ldflags", "-s -w", "-o", program, "k8s.io/sample-apiserver")
	c.Env = append(c.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build upstream's sample API server: %v\n%s", err, out)
	}
	writeImage(t, path, imagetar.Image{
		Name: ExtensionImage, Entrypoint: []string{"/sample-apiserver"},
		Files: []imagetar.File{{Path: "/sample-apiserver", Source: program, Mode: 0o755}},
	})
}
