// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/internal/imagetar"
)

// module is the folder of the module that has the suite, seen from the tree's root, and suiteModule upstream's module.
const (
	module      = "test/gateway/suite"
	suiteModule = "sigs.k8s.io/gateway-api/conformance"
)

// programs holds the paths of the suite and of the program in its images.
type programs struct{ suite, echo string }

// build builds them at the versions of the suite's own go.mod.
func (p programs) build(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if _, err := goCommand("build", "-ldflags", "-s -w", "-o", p.echo, suiteModule+"/echo-basic"); err != nil {
		return err
	}
	_, err := goCommand("test", "-c", "-vet=off", "-ldflags", "-s -w", "-o", p.suite, ".")
	return err
}

// goCommand returns what go prints in the suite's module.
func goCommand(args ...string) (string, error) {
	c := exec.Command("go", args...)
	c.Dir, c.Stderr = module, os.Stderr
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

var image = regexp.MustCompile(`(?m)^\s*image: (\S+)$`)

// imageNames returns the images that the manifests below a folder ask for.
func imageNames(folder string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(folder, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(file) != ".yaml" {
			return err
		}
		text, err := os.ReadFile(file)
		for _, match := range image.FindAllStringSubmatch(string(text), -1) {
			names = append(names, match[1])
		}
		return err
	})
	return names, err
}

// writeImages writes one archive with echo-basic under each name that the suite's manifests have: all versions of
// echo-basic, of which the newest does what each of them does, and coredns, which has to be ready, and which no test of
// the profiles speaks with.
func (p programs) writeImages(archive string) error {
	folder, err := goCommand("list", "-m", "-f", "{{.Dir}}", suiteModule)
	if err != nil {
		return err
	}
	var names []string
	for _, manifests := range []string{"base", "tests"} { // and not mesh
		some, err := imageNames(filepath.Join(folder, manifests))
		if err != nil {
			return err
		}
		names = append(names, some...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	var images []imagetar.Image
	for _, name := range names {
		images = append(images, imagetar.Image{
			Name: name, Entrypoint: []string{"/echo-basic"}, Files: []imagetar.File{{Path: "/echo-basic", Source: p.echo, Mode: 0o755}},
		})
	}
	out, err := os.Create(archive)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := imagetar.Write(out, images...); err != nil {
		return err
	}
	return out.Close()
}
