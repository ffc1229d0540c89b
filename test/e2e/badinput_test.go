//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestServerRefusesBadHostAndChangesNothing: what a server finds wrong on its host ends it with exit code 1, says what
// happened and what to do, and leaves what is on the disk as it was.
func TestServerRefusesBadHostAndChangesNothing(t *testing.T) {
	m := harness.NewMachine(t)
	s := m.NewServer("--disable-agent")
	s.StartAPI()
	s.Kubectl("create", "configmap", "kept", "--from-literal=a=1")
	testenv.NoError(t, s.Stop())

	t.Run("read-only", func(t *testing.T) {
		dir := filepath.Join(m.Dir, "read-only")
		testenv.NoError(t, os.Mkdir(dir, 0o755))
		testenv.Must(m.Run("mount", "-t", "tmpfs", "-o", "ro", "none", dir))(t)
		out, code := runServer(m, "--disable-agent", "--data-dir", dir, "--node-name", "x", "--node-ip", harness.NodeIP, "--write-kubeconfig", filepath.Join(m.Dir, "k"))
		refused(t, out, code, dir, "read-only")
	})
	for _, d := range []struct {
		name   string
		damage func([]byte) []byte
	}{
		{"truncated", func(b []byte) []byte { return b[:len(b)/2] }},
		{"bit-flipped", flipWritten},
	} {
		t.Run(d.name, func(t *testing.T) {
			damaged := 0
			for _, path := range storeFiles(t, s.DataDir) {
				if d.name == "bit-flipped" && filepath.Ext(path) == ".db" {
					continue // most of it are pages that are not in use, where damage means nothing
				}
				damaged++
				withFile(t, path, d.damage, func() {
					before := hashes(t, s.DataDir)
					out, code := runServer(m, s.Args...)
					refused(t, out, code, filepath.Base(path))
					harness.Says(t, out, "restore")
					testenv.Equal(t, hashes(t, s.DataDir), before, "files changed:")
				})
			}
			testenv.True(t, damaged != 0, "the store has no files to damage")
		})
	}
	s.Start() // with all files as they were
	s.WaitAPI()
	s.In(t).Await(soon, "configmap/kept", "{.data.a}", "1")
}

// TestDiskFull: a full disk refuses writes and serves reads, and nothing has to be started again once there is room.
func TestDiskFull(t *testing.T) {
	m := harness.NewMachine(t)
	s := m.NewServer("--disable-agent")
	testenv.NoError(t, os.MkdirAll(s.DataDir, 0o755))
	testenv.Must(m.Run("mount", "-t", "tmpfs", "-o", "size=160m", "none", s.DataDir))(t)
	s.StartAPI()
	k := s.In(t)
	k.Kubectl("create", "configmap", "kept", "--from-literal=a=1")
	filler := filepath.Join(s.DataDir, "filler")
	out := testenv.Must(
		m.Run("sh", "-c", "dd if=/dev/zero of="+filler+" bs=4096 2>/dev/null; df --output=avail "+s.DataDir+" | tail -1"))(t)
	// A write that was under way has the server give up its reserve, of 16 MiB.
	if left, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || left > 16<<10 {
		t.Fatalf("the disk is not full, but has %s KiB: %v", out, err)
	}
	pad := strings.Repeat("x", 100_000)
	refusedAt := -1
	for i := range 400 {
		err := harness.Reaching(func() error {
			return testenv.Err(k.TryApply(fmt.Sprintf(`{apiVersion: v1, kind: ConfigMap, metadata: {name: pad-%d, namespace: default}, data: {pad: "%s"}}`, i, pad)))
		})
		if err != nil {
			harness.Says(t, err.Error(), "space")
			refusedAt = i
			break
		}
	}
	testenv.Require(t, refusedAt >= 0, "forty megabytes of writes were acknowledged on a full disk")
	k.Await(soon, "configmap/kept", "{.data.a}", "1")
	for i := range refusedAt {
		k.Kubectl("get", "configmap", "pad-"+strconv.Itoa(i), "-o", "name")
	}
	testenv.Must(m.Run("rm", filler))(t)
	s.Creates("configmap", "after", "--from-literal=a=1") // writes go on
	testenv.NoError(t, s.Alive())
	s.Kill()
	s.StartAPI()
	k.Kubectl("get", "configmap", "after", "kept")
}

// runServer runs a server that is expected to refuse and returns what it said and its exit code.
func runServer(m *harness.Machine, args ...string) (string, int) {
	// One that does not refuse is ended inside the machine: a context would end only what entered it.
	c := m.Command(context.Background(), "timeout", append([]string{"-k", "10", "300", m.Coracle(), "server"}, args...)...)
	out, _ := c.CombinedOutput()
	return string(out), c.ProcessState.ExitCode()
}

func refused(t *testing.T, out string, code int, want ...string) {
	t.Helper()
	testenv.Equal(t, code, 1, "exit code")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	harness.Says(t, lines[len(lines)-1], append(want, "coracle: ")...)
	testenv.False(t, strings.Contains(out, "goroutine "), "it crashed:\n%s", out)
}

// withFile changes a file while f runs and puts it back.
func withFile(t *testing.T, path string, change func([]byte) []byte, f func()) {
	t.Helper()
	before := testenv.Must(os.ReadFile(path))(t)
	testenv.NoError(t, os.WriteFile(path, change(append([]byte(nil), before...)), 0o600))
	defer func() { testenv.NoError(t, os.WriteFile(path, before, 0o600)) }()
	f()
}

// flipWritten flips a bit of each of eight bytes in the middle of what has been written: the log is allocated ahead,
// and up to seven bytes behind a record are padding, where damage means nothing.
func flipWritten(b []byte) []byte {
	end := len(bytes.TrimRight(b, "\x00"))
	for i := range 8 {
		b[end/2+i] ^= 1
	}
	return b
}

// storeFiles lists the store's files that hold data.
func storeFiles(t *testing.T, dataDir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Join(dataDir, "server", "store"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err == nil && info.Size() >= 16<<10 && d.Name() != "RESERVE" { // only room kept for a full disk

			out = append(out, path)
		}
		return nil
	})
	testenv.NoError(t, err)
	return out
}

// hashes sums up the store's files.
func hashes(t *testing.T, dataDir string) string {
	t.Helper()
	var out strings.Builder
	for _, path := range storeFiles(t, dataDir) {
		b := testenv.Must(os.ReadFile(path))(t)
		fmt.Fprintf(&out, "%s %x\n", filepath.Base(path), sha256.Sum256(b))
	}
	return out.String()
}
