// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// tags are the same everywhere, so that packages are compiled once.
const tags = "no_btrfs no_zfs no_devmapper grpcnotrace"

// Programs holds the paths of what the suite and its images are made of.
type Programs struct {
	Suite, Ginkgo                              string
	Agnhost, Etcd, SampleAPIServer, Nonewprivs string
	Upstream                                   string // the folder of upstream's module, which is there already
}

// findPrograms says where build leaves the programs.
func findPrograms(root, folder string) (Programs, error) {
	upstream, err := goCommand(root, "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	return Programs{
		Suite: filepath.Join(folder, "e2e.test"), Ginkgo: filepath.Join(folder, "ginkgo"),
		Agnhost: filepath.Join(folder, "agnhost"), Etcd: filepath.Join(folder, "etcd"), SampleAPIServer: filepath.Join(folder, "sample-apiserver"),
		Nonewprivs: filepath.Join(folder, "nnp"), Upstream: upstream,
	}, err
}

// build builds the programs. The versions are those of our go.mod; modules that only the suite needs come in through a
// copy of it in the folder, at the versions that upstream's module asks for, so that ours stays without them.
func (p Programs) build(root, folder, ldflags string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o644); err != nil {
			return err
		}
	}
	common := []string{"-mod=mod", "-modfile=" + filepath.Join(folder, "go.mod"), "-tags", tags, "-ldflags", "-s -w " + ldflags, "-o"}
	for _, b := range []struct{ file, pkg string }{
		{p.Agnhost, "k8s.io/kubernetes/test/images/agnhost"}, {p.Nonewprivs, "k8s.io/kubernetes/test/images/nonewprivs"},
		{p.Etcd, "go.etcd.io/etcd/server/v3"}, {p.SampleAPIServer, "k8s.io/sample-apiserver"}, {p.Ginkgo, "github.com/onsi/ginkgo/v2/ginkgo"},
	} {
		if _, err := goCommand(root, append(append([]string{"build"}, common...), b.file, b.pkg)...); err != nil {
			return err
		}
	}
	_, err := goCommand(root, append(append([]string{"test", "-c", "-vet=off"}, common...), p.Suite, "k8s.io/kubernetes/test/e2e")...)
	return err
}

// goCommand returns what go prints in a folder.
func goCommand(folder string, args ...string) (string, error) {
	c := exec.Command("go", args...)
	c.Dir, c.Stderr = folder, os.Stderr
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
