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
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestBadCommandLine: what is wrong with flags, environment and files is said in words, with exit code 2, before
// anything is started or written.
func TestBadCommandLine(t *testing.T) {
	m := harness.NewMachine(t)
	dir := filepath.Join(m.Dir, "never")
	file := func(name, text string) string {
		path := filepath.Join(m.Dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name, env string
		args      []string
		want      []string
	}{
		{"command", "", []string{"sevrer"}, []string{`unknown command "sevrer"`, "server"}},
		{"flag", "", []string{"server", "--data-dri", dir}, []string{"--data-dri", "did you mean --data-dir"}},
		{"key", "", []string{"server", "--config", file("key.yaml", "data-dir: "+dir+"\nnode-nmae: x\n")}, []string{"key.yaml:2", "node-nmae", "did you mean node-name"}},
		{"yaml", "", []string{"server", "--config", file("bad.yaml", "data-dir: "+dir+"\n  - nope: [\n")}, []string{"bad.yaml:2", "not valid YAML"}},
		{"absent", "", []string{"server", "--config", filepath.Join(m.Dir, "absent.yaml")}, []string{"absent.yaml", "cannot be read"}},
		{"unreadable", "", []string{"server", "--config", m.Dir}, []string{m.Dir, "cannot be read", "is a directory"}},
		{"environment", "CORACLE_CLUSTER_CIDR=nope", []string{"server"}, []string{"CORACLE_CLUSTER_CIDR", "CIDR"}},
		{"overlap", "", []string{"server", "--cluster-cidr", "10.0.0.0/12", "--service-cidr", "10.1.0.0/16"}, []string{"overlaps"}},
		{"dns", "", []string{"server", "--cluster-dns", "192.168.1.1"}, []string{"--cluster-dns", "10.43.0.0/16"}},
		{"taint", "", []string{"server", "--node-taint", "a=b:Never"}, []string{"--node-taint", "NoSchedule"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := m.Command(context.Background(), m.Coracle(), c.args...)
			if c.env != "" {
				cmd.Env = append(cmd.Env, c.env)
			}
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != 2 {
				t.Errorf("exit code %d, %v, want 2", code, err)
			}
			harness.Says(t, string(out), c.want...)
		})
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the data directory was touched: %v", err)
	}
}

// TestRefusals: what a server finds wrong on its host ends it with exit code 1, says what happened and what to do, and
// leaves what is on the disk as it was.
func TestRefusals(t *testing.T) {
	m := harness.NewMachine(t)
	s := m.NewServer("--disable-agent")
	s.Start()
	s.WaitAPI()
	s.Kubectl("create", "configmap", "kept", "--from-literal=a=1")

	t.Run("second server", func(t *testing.T) {
		out, code := runServer(m, append(s.Args, "--https-listen-port", "7443", "--run-dir", filepath.Join(m.Dir, "run2"))...)
		refused(t, out, code, "another coracle", s.DataDir, "--data-dir")
	})
	t.Run("port", func(t *testing.T) {
		out, code := runServer(m, "--disable-agent", "--data-dir", filepath.Join(m.Dir, "other"), "--node-name", "x", "--node-ip", harness.NodeIP,
			"--write-kubeconfig", filepath.Join(m.Dir, "kubeconfig2"))
		refused(t, out, code, "6443", "--https-listen-port")
	})
	if err := s.Alive(); err != nil {
		t.Fatal(err)
	}
	s.Kubectl("get", "configmap", "kept")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}

	t.Run("read-only", func(t *testing.T) {
		dir := filepath.Join(m.Dir, "read-only")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Run("mount", "-t", "tmpfs", "-o", "ro", "none", dir); err != nil {
			t.Fatal(err)
		}
		out, code := runServer(m, "--disable-agent", "--data-dir", dir, "--node-name", "x", "--node-ip", harness.NodeIP, "--write-kubeconfig", filepath.Join(m.Dir, "k"))
		refused(t, out, code, dir, "read-only")
	})
	t.Run("newer", func(t *testing.T) {
		path := filepath.Join(s.DataDir, "server", "identity.json")
		withFile(t, path, func(b []byte) []byte {
			return regexp.MustCompile(`"format": \d+`).ReplaceAll(b, []byte(`"format": 99`))
		}, func() {
			out, code := runServer(m, s.Args...)
			refused(t, out, code, "newer coracle", "Nothing was changed")
		})
	})
	t.Run("another cluster's", func(t *testing.T) {
		other := filepath.Join(m.Dir, "cluster2")
		args := []string{"--disable-agent", "--data-dir", other, "--node-name", "x", "--node-ip", harness.NodeIP, "--write-kubeconfig", filepath.Join(m.Dir, "k2")}
		o := &harness.Server{Machine: m, Args: args, DataDir: other, Kubeconfig: filepath.Join(m.Dir, "k2"), Log: filepath.Join(m.Dir, "log2")}
		o.Start()
		o.WaitAPI()
		if err := o.Stop(); err != nil {
			t.Fatal(err)
		}
		store := filepath.Join(other, "server", "store")
		if err := os.RemoveAll(store); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(store, os.DirFS(filepath.Join(s.DataDir, "server", "store"))); err != nil {
			t.Fatal(err)
		}
		out, code := runServer(m, args...)
		refused(t, out, code, "cluster")
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
					if after := hashes(t, s.DataDir); after != before {
						t.Errorf("files changed:\n%s\nwere\n%s", after, before)
					}
				})
			}
			if damaged == 0 {
				t.Error("the store has no files to damage")
			}
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
	if err := os.MkdirAll(s.DataDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run("mount", "-t", "tmpfs", "-o", "size=160m", "none", s.DataDir); err != nil {
		t.Fatal(err)
	}
	s.Start()
	s.WaitAPI()
	k := s.In(t)
	k.Kubectl("create", "configmap", "kept", "--from-literal=a=1")
	filler := filepath.Join(s.DataDir, "filler")
	out, err := m.Run("sh", "-c", "dd if=/dev/zero of="+filler+" bs=4096 2>/dev/null; df --output=avail "+s.DataDir+" | tail -1")
	if err != nil {
		t.Fatal(err)
	}
	// A write that was under way has the server give up its reserve, of 16 MiB.
	if left, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || left > 16<<10 {
		t.Fatalf("the disk is not full, but has %s KiB: %v", out, err)
	}
	pad := strings.Repeat("x", 100_000)
	refusedAt := -1
	for i := range 400 {
		_, err := k.TryApply(fmt.Sprintf(`{apiVersion: v1, kind: ConfigMap, metadata: {name: pad-%d, namespace: default}, data: {pad: "%s"}}`, i, pad))
		if err != nil {
			harness.Says(t, err.Error(), "space")
			refusedAt = i
			break
		}
	}
	if refusedAt < 0 {
		t.Fatal("forty megabytes of writes were acknowledged on a full disk")
	}
	k.Await(soon, "configmap/kept", "{.data.a}", "1")
	for i := range refusedAt {
		k.Kubectl("get", "configmap", "pad-"+strconv.Itoa(i), "-o", "name")
	}
	if _, err := m.Run("rm", filler); err != nil {
		t.Fatal(err)
	}
	s.Creates("configmap", "after", "--from-literal=a=1") // writes go on
	if err := s.Alive(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	s.Start()
	s.WaitAPI()
	k.Kubectl("get", "configmap", "after", "kept")
}

// runServer runs a server that is expected to refuse and returns what it said and its exit code.
func runServer(m *harness.Machine, args ...string) (string, int) {
	// One that does not refuse is ended inside the machine: a context would end only what entered it.
	c := m.Command(context.Background(), "timeout", append([]string{"-k", "10", "180", m.Coracle(), "server"}, args...)...)
	out, _ := c.CombinedOutput()
	return string(out), c.ProcessState.ExitCode()
}

func refused(t *testing.T, out string, code int, want ...string) {
	t.Helper()
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	harness.Says(t, lines[len(lines)-1], append(want, "coracle: ")...)
	if strings.Contains(out, "goroutine ") {
		t.Errorf("it crashed:\n%s", out)
	}
}

// withFile changes a file while f runs and puts it back.
func withFile(t *testing.T, path string, change func([]byte) []byte, f func()) {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(append([]byte(nil), before...)), 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
	}()
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
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// hashes sums up the store's files.
func hashes(t *testing.T, dataDir string) string {
	t.Helper()
	var out strings.Builder
	for _, path := range storeFiles(t, dataDir) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s %x\n", filepath.Base(path), sha256.Sum256(b))
	}
	return out.String()
}
