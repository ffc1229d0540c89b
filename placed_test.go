// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestArchitecturePlacesEveryPackage: who meets a package finds it on docs/architecture.md, or on the store's page.
func TestArchitecturePlacesEveryPackage(t *testing.T) {
	page, err := os.ReadFile("docs/architecture.md")
	store, storeErr := os.ReadFile("raftstore/DESIGN.md")
	placed := map[string]bool{".": true}
	for _, path := range regexp.MustCompile(`[\w-]+(?:/[\w-]+)*(?:\.go\b)?`).FindAllString(string(page)+string(store), -1) {
		if placed[path] = true; strings.HasSuffix(path, ".go") {
			placed[filepath.Dir(path)] = true
		}
	}
	err = errors.Join(err, storeErr, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch dir := filepath.Dir(path); {
		case err != nil:
			return err
		case d.IsDir() && (path == "build" || path == "test" || d.Name() == "testdata" || len(path) > 1 && path[0] == '.'):
			return filepath.SkipDir
		case filepath.Ext(path) == ".go" && !strings.HasSuffix(path, "_test.go") && !placed[dir]:
			t.Errorf("docs/architecture.md does not say what %s is for", dir)
			placed[dir] = true // once is enough
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
}
