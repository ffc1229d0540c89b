// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPauseRunsAsUserThatSystemdKnows: systemd ends the processes of all users but those that its uid_is_valid refuses,
// -1 in 32 and in 16 bits (systemd, src/basic/uid-classification.c and user-util.c), and pause is not to be root.
func TestPauseRunsAsUserThatSystemdKnows(t *testing.T) {
	dir := t.TempDir()
	program, archive := filepath.Join(dir, "pause"), filepath.Join(dir, "pause.tar")
	testenv.NoError(t, os.WriteFile(program, []byte("a program"), 0o755))
	testenv.NoError(t, pauseImage(program, "example.test/pause:1", "amd64", archive))
	f := testenv.Must(os.Open(archive))(t)
	defer f.Close()
	var config struct {
		Config struct{ User string } `json:"config"`
	}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		testenv.NoError(t, err)
		if strings.HasSuffix(h.Name, ".json") && h.Name != "manifest.json" {
			testenv.NoError(t, json.NewDecoder(r).Decode(&config))
		}
	}
	for id := range strings.SplitSeq(config.Config.User, ":") {
		n := testenv.Must(strconv.ParseUint(id, 10, 32))(t)
		testenv.True(t, n != 0 && n != math.MaxUint16 && n != math.MaxUint32, "pause runs as %q", config.Config.User)
	}
}

// TestIndexIsTheSameUnderEachUmask: a release has the same bytes on each machine.
func TestIndexIsTheSameUnderEachUmask(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	testenv.NoError(t, os.WriteFile(program, []byte("a program"), 0o755))
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "notices"), []byte("notices"), 0o644))
	want := testenv.Must(list(dir))(t).Encode()
	testenv.NoError(t, os.Chmod(program, 0o700))
	testenv.NoError(t, os.Chmod(filepath.Join(dir, "notices"), 0o600))
	testenv.Equal(t, string(testenv.Must(list(dir))(t).Encode()), string(want), "the index")
}
