// SPDX-License-Identifier: Apache-2.0

package uml

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed xstate/xstate.c
var xstateSource []byte

// environ is the environment of a User-Mode Linux: this process's own, with the folder of the guest's memory, and a
// folder of files that are kept as long as it runs. On a processor that has AMX a library is preloaded, which gcc makes
// there: xstate/xstate.c says why.
func environ(memory, dir string) ([]string, error) {
	env := append(os.Environ(), "TMPDIR="+memory, "HOME="+dir)
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !strings.Contains(string(cpu), " amx_tile") {
		return env, err
	}
	library, err := buildXstate(dir)
	return append(env, "LD_PRELOAD="+library), err
}

func buildXstate(dir string) (library string, err error) {
	source, library := filepath.Join(dir, "xstate.c"), filepath.Join(dir, "xstate.so")
	if err := os.WriteFile(source, xstateSource, 0o644); err != nil {
		return "", err
	}
	// A guest that runs may use the one that is there.
	out, err := exec.Command("gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library+".new", source).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("gcc: %w\n%s", err, out)
	}
	return library, os.Rename(library+".new", library)
}
