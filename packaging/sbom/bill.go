// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/coracle-k8s/coracle/internal/embedded/index"
)

// goPrograms are the embedded programs that have Go's build information.
var goPrograms = []string{"runc", "coracle-helper", "coracle-ingress"}

// bill is a bill of materials that grows.
type bill struct {
	components map[string]cdx.Component // by their references, the program apart
	needs      map[string][]string      // what each component needs, by references
	program    cdx.Component
	tools      []cdx.Component
}

func (s sources) bill() (*bill, error) {
	b := &bill{components: map[string]cdx.Component{}, needs: map[string][]string{}}
	text, err := os.ReadFile(s.program)
	if err != nil {
		return nil, err
	}
	b.program = cdx.Component{
		BOMRef: s.name, Type: cdx.ComponentTypeApplication, Name: s.name, Version: s.version, Hashes: hashes(sha256Hex(text)),
		Properties: &[]cdx.Property{{Name: "coracle:processor", Value: s.arch}},
	}
	if err := b.addModules(s.name, s.program); err != nil {
		return nil, err
	}
	if err := b.addEmbedded(s.name, s.set); err != nil {
		return nil, err
	}
	for _, file := range s.debian {
		list, err := debianPackages(file, s.arch)
		if err != nil {
			return nil, err
		}
		for _, c := range list {
			b.add(s.name, c)
		}
	}
	if b.tools, err = debianPackages(s.tools, s.arch); err != nil {
		return nil, err
	}
	return b, b.addPages(s.name, s.npm)
}

// add puts c on the bill, as something that the component with the reference parent needs.
func (b *bill) add(parent string, c cdx.Component) {
	if _, known := b.components[c.BOMRef]; !known {
		b.components[c.BOMRef] = c
	}
	b.needs[parent] = append(b.needs[parent], c.BOMRef)
}

// addModules adds the modules that the program file was linked from, its own module and Go's library among them.
func (b *bill) addModules(parent, file string) error {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return fmt.Errorf("build information of %s: %w", file, err)
	}
	b.add(parent, module("std", strings.TrimPrefix(strings.Fields(info.GoVersion)[0], "go")))
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m.Path == "github.com/coracle-k8s/coracle" {
			continue // what the bill is of
		}
		c := module(m.Path, m.Version)
		switch {
		case m.Replace != nil && m.Replace.Sum == "": // by a folder: embedded.sh patches no other module
			c.Pedigree = &cdx.Pedigree{Patches: &[]cdx.Patch{{Type: cdx.PatchTypeUnofficial, Diff: &cdx.Diff{URL: "packaging/runc.patch"}}}}
		case m.Replace != nil:
			c = module(m.Replace.Path, m.Replace.Version)
		}
		b.add(parent, c)
	}
	return nil
}

func module(path, version string) cdx.Component {
	purl := "pkg:golang/" + strings.ToLower(path) + "@" + url.QueryEscape(version)
	return cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: purl}
}

// addEmbedded adds each file of the set, and the modules of those that are Go programs.
func (b *bill) addEmbedded(parent, set string) error {
	text, err := os.ReadFile(filepath.Join(set, index.FileName))
	if err != nil {
		return err
	}
	files, err := index.Parse(text)
	if err != nil {
		return err
	}
	for _, e := range files {
		if e.Link != "" {
			continue
		}
		c := cdx.Component{BOMRef: "embedded/" + e.Path, Type: cdx.ComponentTypeFile, Name: e.Path, Hashes: hashes(e.SHA256)}
		if slices.Contains(goPrograms, e.Path) {
			c.Type = cdx.ComponentTypeApplication
			if err := b.addModules(c.BOMRef, filepath.Join(set, e.Path)); err != nil {
				return err
			}
		}
		b.add(parent, c)
	}
	for _, name := range goPrograms {
		if _, known := b.components["embedded/"+name]; !known {
			return fmt.Errorf("the set in %s lacks %s", set, name)
		}
	}
	return nil
}

// debianPackages reads a list in the form of packaging/debs.sh.
func debianPackages(file, arch string) ([]cdx.Component, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []cdx.Component
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 5 || f[2] != "source" {
			return nil, fmt.Errorf("%s: %q is not name, version, \"source\", source and its version", file, strings.TrimSpace(line))
		}
		purl := fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", url.QueryEscape(f[0]), url.QueryEscape(f[1]), arch)
		list = append(list, cdx.Component{
			BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: f[0], Version: f[1], PackageURL: purl,
			Properties: &[]cdx.Property{{Name: "coracle:source-package", Value: f[3] + " " + f[4]}},
		})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s lists no package", file)
	}
	return list, nil
}

// addPages adds the packages of npm that the console's pages are made of.
func (b *bill) addPages(parent, lock string) error {
	text, err := os.ReadFile(lock)
	if err != nil {
		return err
	}
	var locked struct {
		Packages map[string]struct {
			Version string
			License string
			Dev     bool
		}
	}
	if err := json.Unmarshal(text, &locked); err != nil {
		return fmt.Errorf("%s: %w", lock, err)
	}
	if len(locked.Packages) == 0 {
		return errors.New(lock + " has no packages")
	}
	for _, place := range slices.Sorted(maps.Keys(locked.Packages)) {
		_, name, found := strings.Cut(place, "node_modules/")
		p := locked.Packages[place]
		if !found || p.Dev {
			continue
		}
		purl := "pkg:npm/" + strings.Replace(name, "@", "%40", 1) + "@" + url.QueryEscape(p.Version)
		c := cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: path.Base(name), Version: p.Version, PackageURL: purl}
		if group := path.Dir(name); group != "." {
			c.Group = group
		}
		if p.License != "" {
			c.Licenses = &cdx.Licenses{{Expression: p.License}}
		}
		b.add(parent, c)
	}
	return nil
}

// encode writes the bill with its lists in an order of their own.
func (b *bill) encode(w io.Writer) error {
	out := cdx.NewBOM()
	out.Metadata = &cdx.Metadata{Component: &b.program, Tools: &cdx.ToolsChoice{Components: &b.tools}}
	components := slices.SortedFunc(maps.Values(b.components), func(x, y cdx.Component) int { return cmp.Compare(x.BOMRef, y.BOMRef) })
	out.Components = &components
	var dependencies []cdx.Dependency
	for _, ref := range slices.Sorted(maps.Keys(b.needs)) {
		needs := slices.Compact(slices.Sorted(slices.Values(b.needs[ref])))
		dependencies = append(dependencies, cdx.Dependency{Ref: ref, Dependencies: &needs})
	}
	out.Dependencies = &dependencies
	// Version 1.6: what most programs that read bills know.
	return cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(out, cdx.SpecVersion1_6)
}

func hashes(sum string) *[]cdx.Hash {
	return &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: sum}}
}

// sha256Hex returns the sum in hex.
func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
