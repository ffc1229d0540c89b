// SPDX-License-Identifier: Apache-2.0

package main

import (
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestErrorsOfOneArchitectureAreFound: what compiles for one processor and not for the other is found out.
func TestErrorsOfOneArchitectureAreFound(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		good map[string]bool
	}{
		"both":                      {"func f(s syscall.Stat_t) int64 { return s.Size }", map[string]bool{"amd64": true, "arm64": true}},
		"a field of another type":   {"func f(s syscall.Stat_t) uint64 { return s.Nlink }", map[string]bool{"amd64": true}},
		"a call that one has alone": {"const f = syscall.SYS_OPEN", map[string]bool{"amd64": true}},
		"neither":                   {"var f syscall.Stat_t = 1", nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range map[string]string{"go.mod": "module m\ngo 1.25\n", "m.go": "package m\nimport \"syscall\"\n" + tt.body + "\n"} {
				testenv.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
			}
			t.Chdir(dir)
			for _, arch := range []string{"amd64", "arm64"} {
				c := &checker{arch: arch, fset: token.NewFileSet(), done: map[string]*types.Package{"unsafe": types.Unsafe}}
				if err := c.run("", []string{"./..."}); (err == nil) != tt.good[arch] {
					t.Errorf("%s: %v", arch, err)
				}
			}
		})
	}
}
