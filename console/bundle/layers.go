// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// layers are the folders of the sources, from the lowest. A file may import files of its own layer and of lower ones,
// and no file imports itself by way of others. main.tsx, which lies above them, may import all.
var layers = []string{"base", "api", "model", "widgets", "actions", "views", "app"}

// imported finds what a source imports of the sources, for its types alone too, at once or when it is needed.
var imported = regexp.MustCompile(`(?:\bfrom\s*|\bimport\s*\(?\s*)"(\.[^"]*)"`)

// checkLayers returns an error for each import that breaks the order of layers, and for each circle of imports.
func checkLayers(src fs.FS) error {
	imports := map[string][]string{}
	err := fs.WalkDir(src, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(name) != ".ts" && path.Ext(name) != ".tsx" {
			return err
		}
		text, err := fs.ReadFile(src, name)
		if err != nil {
			return err
		}
		file := strings.TrimSuffix(name, path.Ext(name))
		imports[file] = nil
		for _, m := range imported.FindAllSubmatch(text, -1) {
			imports[file] = append(imports[file], path.Join(path.Dir(file), string(m[1])))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the sources: %w", err)
	}
	return errors.Join(append(wrongLayers(imports), importCircles(imports)...)...)
}

// layerOf is the index of a file's layer; len(layers) is that of files outside of the folders, -1 an unknown folder's.
func layerOf(file string) int {
	folder, _, inside := strings.Cut(file, "/")
	if !inside {
		return len(layers)
	}
	return slices.Index(layers, folder)
}

func wrongLayers(imports map[string][]string) []error {
	var errs []error
	for _, file := range slices.Sorted(maps.Keys(imports)) {
		if layerOf(file) < 0 {
			errs = append(errs, fmt.Errorf("%s is in none of the folders %s", file, strings.Join(layers, ", ")))
		}
		for _, other := range imports[file] {
			if layerOf(other) > layerOf(file) {
				errs = append(errs, fmt.Errorf("%s imports %s, which is of a higher layer (%s)", file, other, strings.Join(layers, ", ")))
			}
		}
	}
	return errs
}

// importCircles names one circle for each file by which one is entered.
func importCircles(imports map[string][]string) []error {
	var errs []error
	done := map[string]bool{}
	var visit func(file string, way []string)
	visit = func(file string, way []string) {
		if at := slices.Index(way, file); at >= 0 {
			errs = append(errs, fmt.Errorf("a circle of imports: %s", strings.Join(append(way[at:], file), " > ")))
			return
		}
		if done[file] {
			return
		}
		for _, other := range imports[file] {
			visit(other, append(slices.Clone(way), file))
		}
		done[file] = true
	}
	for _, file := range slices.Sorted(maps.Keys(imports)) {
		visit(file, nil)
	}
	return errs
}

func checkLayersOf(folder string) error {
	return checkLayers(os.DirFS(folder))
}
