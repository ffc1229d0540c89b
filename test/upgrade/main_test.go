//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"cmp"
	"io"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) {
	klog.LogToStderr(false) // client-go's: what fails is reported by the caller
	klog.SetOutput(io.Discard)
	harness.Main(m)
}

// A version is a program, and what a scenario calls it.
type version struct{ name, program string }

// this is the version under test.
func this() version { return version{name: "this version"} }

// older is the version before the one under test.
func older(t *testing.T) version {
	t.Helper()
	return version{"the older version", built(t, "CORACLE_OLDER_BIN")}
}

// twoLevels is the version under test with a level more, and another minor version of Kubernetes at level 1.
func twoLevels(t *testing.T) version {
	t.Helper()
	return version{"the version of two levels", built(t, "CORACLE_TWOLEVELS_BIN")}
}

// built is the program that a variable of the environment names. Machines see the folder of the one under test.
func built(t *testing.T, variable string) string {
	t.Helper()
	program := os.Getenv(variable)
	if program == "" {
		t.Skip(variable + " names no program: make compat and make e2e-upgrade build it")
	}
	testenv.Must(os.Stat(program))(t)
	want := filepath.Dir(cmp.Or(os.Getenv("CORACLE_BIN"), program))
	testenv.Equal(t, filepath.Dir(program), want, "the folder of %s:", variable)
	return program
}
