// SPDX-License-Identifier: Apache-2.0

package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestReleaseIsBuiltWithTheGoOfGoMod: another version of Go writes another program, so a newer one, with which all else
// is built, builds no release.
func TestReleaseIsBuiltWithTheGoOfGoMod(t *testing.T) {
	dir := t.TempDir()
	write := func(path, text string) string {
		path = filepath.Join(dir, path)
		testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testenv.NoError(t, os.WriteFile(path, []byte(text), 0o755))
		return path
	}
	write("go.mod", "module example.test\n\ngo 1.998.0\n")
	script := write("packaging/go.sh", string(testenv.Must(os.ReadFile("../../packaging/go.sh"))(t)))
	// A newer Go, and that of go.mod as it has been fetched.
	newer := write("bin/go", "#!/bin/sh\ncase $2 in\nGOVERSION) echo go1.999.0 ;;\nGOHOSTARCH) echo "+runtime.GOARCH+" ;;\n"+
		"GOMODCACHE) echo "+dir+" ;;\n*) exit 1 ;;\nesac\n")
	fetched := "golang.org/toolchain@v0.0.1-go1.998.0.linux-" + runtime.GOARCH
	write(fetched+"/src/go.mod", "module std\n")
	exact := write(fetched+"/bin/go", "")
	find := func(option ...string) string {
		c := exec.CommandContext(t.Context(), script, option...)
		c.Env = append(os.Environ(), "PATH="+filepath.Dir(newer)+":/usr/bin:/bin")
		return strings.TrimSpace(string(testenv.Must(c.Output())(t)))
	}
	testenv.Equal(t, find(), newer, "the Go of a build")
	testenv.Equal(t, find("--exact"), exact, "the Go of a release")
}
