// SPDX-License-Identifier: Apache-2.0

package uml

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// ModuleFiles are for a guest with an init of its own, which is no test's program: the files of modules in the order in
// which they have to be loaded. They are the ones that a guest of WithNFTables has, and those of Debian's package that
// are named, each with what it needs. Where they are not to be had the test ends.
func ModuleFiles(t testing.TB, names ...string) []string {
	t.Helper()
	o := WithNFTables(t, 0)
	if o.Kernel != "" {
		t.Skipf("Debian has no source of its User-Mode Linux any more, and %s has neither control groups nor overlayfs, which pods need", o.Kernel)
	}
	dir := testenv.Must(modules())(t)
	files := testenv.Must(filesOf(dir, slices.Concat(o.Modules, names)))(t)
	own := testenv.Must(ownFiles(o.Own))(t)
	return append(files, own...)
}

// ModuleFile is the file of a module of Debian's package.
func ModuleFile(name string) (string, error) {
	dir, err := modules()
	if err != nil {
		return "", err
	}
	files, err := filesOf(dir, []string{name})
	if err != nil {
		return "", err
	}
	return files[len(files)-1], nil // what it needs comes before it
}

// filesOf are the files of the package's modules, each after those that it needs, as modules.dep has them, and once.
func filesOf(dir string, names []string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read what modules need: %w", err)
	}
	needs := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		file, others, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok {
			needs[strings.TrimSuffix(filepath.Base(file), ".ko")] = append(reversed(strings.Fields(others)), file)
		}
	}
	var out []string
	for _, name := range names {
		if needs[name] == nil {
			return nil, fmt.Errorf("the guest's kernel has no module %s", name)
		}
		for _, file := range needs[name] {
			if file = filepath.Join(dir, file); !slices.Contains(out, file) {
				out = append(out, file)
			}
		}
	}
	return out, nil
}

// ownFiles are the modules that lists name, in their order. Each is beside its list.
func ownFiles(lists []string) ([]string, error) {
	var out []string
	for _, list := range lists {
		names, err := os.ReadFile(list)
		if err != nil {
			return nil, fmt.Errorf("read which modules there are: %w", err)
		}
		for file := range strings.FieldsSeq(string(names)) {
			out = append(out, filepath.Join(filepath.Dir(list), file))
		}
	}
	return out, nil
}

// reversed, since modules.dep has last what is to be loaded first.
func reversed(in []string) []string {
	out := slices.Clone(in)
	slices.Reverse(out)
	return out
}
