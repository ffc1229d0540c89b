//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// aFirewall would drop what it has no rule to accept, and has a rule to accept everything. It is there from the
// beginning, for the node looks every half minute.
const aFirewall = "add table inet foreign; add chain inet foreign f { type filter hook forward priority 0; policy drop; }; add rule inet foreign f accept"

func foreignFirewall(t *testing.T, s *harness.Server, change string) {
	t.Helper()
	if out, err := s.Run(filepath.Join(s.DataDir, "bin", "current", "nft"), change); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// expectStatus waits until coracle status finds nothing wrong, and says what is wanted: on a busy machine a component
// may have been in trouble for a moment, and says so until it has found that it is not.
func expectStatus(t *testing.T, s *harness.Server, want ...string) {
	t.Helper()
	harness.Eventually(t, soon, fmt.Sprintf("the status says %q", want), func() error {
		out, err := s.Run(s.Coracle(), "status", "--data-dir", s.DataDir)
		for _, w := range want {
			if err == nil && !strings.Contains(out, w) {
				err = fmt.Errorf("no %q in:\n%s", w, out)
			}
		}
		return err
	})
}

// operations goes through what an administrator does on the machine itself, one after the other.
func operations(t *testing.T, s *harness.Server) {
	k := s.In(t)
	do := func(args ...string) (out string) {
		t.Helper()
		harness.Eventually(t, soon, "coracle "+strings.Join(args, " "), func() (err error) { // a busy server may be too late with an answer
			out, err = s.Run(s.Coracle(), append(args, "--data-dir", s.DataDir)...)
			return err
		})
		return out
	}
	t.Run("status", func(t *testing.T) {
		expectStatus(t, s, "store", "API server", "kubelet", "Nothing is wrong")
		harness.Eventually(t, soon, "the mode of the Service proxy, and why it is that", func() error {
			return statusLine(s, "service proxy", "running.*(ipvs: auto takes it where the kernel has what it needs|nftables: ipvs will not do here: the kernel )")
		})
		testenv.Check(t, s.LogSays("Chose the Service proxy's back end"))
		harness.Eventually(t, soon, "another program's firewall is named", func() error { return statusLine(s, "host firewall", "running.*inet foreign f") })
		foreignFirewall(t, s, "delete table inet foreign")
		harness.Eventually(t, soon, "all parts run", func() error {
			var report struct {
				Ready      time.Time
				Components []struct{ Name, State string }
			}
			out, err := s.Run(s.Coracle(), "status", "-o", "json", "--data-dir", s.DataDir)
			if err != nil {
				return err
			}
			if err := json.Unmarshal([]byte(out), &report); err != nil {
				return err
			}
			if len(report.Components) < 8 {
				return fmt.Errorf("status lists %d components", len(report.Components))
			}
			for _, c := range report.Components {
				if c.State != "running" {
					return fmt.Errorf("%s is %s", c.Name, c.State)
				}
			}
			return nil
		})
	})
	t.Run("token", func(t *testing.T) {
		testenv.Contains(t, strings.TrimSpace(do("token", "print")), "::agent:", "the agents' token is")
		do("token", "create", "--ttl", "1h", "--description", "for a test")
		harness.Says(t, do("token", "list"), "for a test")
	})
	t.Run("kubeconfig", func(t *testing.T) {
		harness.Says(t, do("kubeconfig", "--server", "https://board.example.com:6443"), "https://board.example.com:6443", "client-certificate-data")
		for _, path := range []string{s.Kubeconfig, filepath.Join(s.DataDir, "server", "token")} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v %v", path, info.Mode(), err)
			}
		}
	})
	t.Run("encryption", func(t *testing.T) { encryption(t, s, do) })
	t.Run("manifests", func(t *testing.T) {
		dir := filepath.Join(s.DataDir, "manifests")
		object := `{apiVersion: v1, kind: ConfigMap, metadata: {name: %s, namespace: default}, data: {count: "%d"}}`
		write(t, filepath.Join(dir, "test.yaml"), fmt.Sprintf(object, "dropped-1", 1)+"\n---\n"+fmt.Sprintf(object, "dropped-2", 1))
		k.Await(soon, "configmap/dropped-2", "{.data.count}", "1")
		write(t, filepath.Join(dir, "test.yaml"), fmt.Sprintf(object, "dropped-1", 2))
		k.Await(soon, "configmap/dropped-1", "{.data.count}", "2")
		awaitDeleted := func(name string) {
			k.Becomes(soon, "", "get", "configmap", name, "--ignore-not-found", "-o", "name")
		}
		awaitDeleted("dropped-2")
		testenv.NoError(t, os.Remove(filepath.Join(dir, "test.yaml")))
		awaitDeleted("dropped-1")
	})
	t.Run("images", func(t *testing.T) { importImage(t, s, "late.tar", "coracle.test/late:1") })
	t.Run("imported", func(t *testing.T) { importedWhilePulled(t, s) })
	t.Run("completion", func(t *testing.T) {
		for _, shell := range []string{"bash", "zsh", "fish"} {
			if out, err := s.Run(s.Coracle(), "completion", shell); err != nil || !strings.Contains(out, "coracle") {
				t.Errorf("%s: %v", shell, err)
			}
		}
	})
}

// importImage puts an archive with one image into the images folder, and waits until that is there.
func importImage(t *testing.T, s *harness.Server, archive, image string) {
	harness.WritePauseImage(t, filepath.Join(s.DataDir, "images", archive), image)
	harness.Eventually(t, soon, "the archive is imported", func() error {
		both, err := s.Command(t.Context(), s.Coracle(), "ctr", "--address", filepath.Join(s.DataDir, "run", "containerd", "containerd.sock"), "-n", "k8s.io", "images", "ls", "-q").CombinedOutput()
		out := string(both)
		if err == nil && !strings.Contains(out, image) {
			err = fmt.Errorf("images: %s", out)
		}
		testenv.False(t, strings.Contains(out, "DEPRECATION"), "ctr warns the user of what only coracle can change: %s", out)
		return err
	})
}

// importedWhilePulled: pods have an imported image while another one, which is set to pull always, waits for a registry
// that never answers.
func importedWhilePulled(t *testing.T, s *harness.Server) {
	const address = "127.0.0.1:5999"
	registry, err := s.Listen(address) // no process accepts: the kernel does, and no byte comes back
	testenv.NoError(t, err)
	defer func() { _ = registry.Close() }() // it was closed unless the test failed
	image := address + "/imported:1"
	importImage(t, s, "imported.tar", image)
	k := s.In(t)
	pod := func(name, policy string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: %q, imagePullPolicy: %s}]}}\n---\n", name, image, policy)
	}
	k.Apply(pod("pulls-always", "Always"))
	harness.Eventually(t, soon, "the image is being pulled", func() error {
		out, err := k.Try("get", "events", "--field-selector", "involvedObject.name=pulls-always,reason=Pulling", "-o", "name")
		if err == nil && out == "" {
			err = fmt.Errorf("there is no such event")
		}
		return err
	})
	k.Apply(pod("if-not-present", "IfNotPresent") + pod("never-pulls", "Never"))
	k.Await(soon, "pod/if-not-present", "{.status.phase}", "Running")
	k.Await(soon, "pod/never-pulls", "{.status.phase}", "Running")
	// Else the deletion of the pod that pulls takes half a minute. Upstream's kubelet does not end a pull when its pod
	// is deleted (pkg/kubelet/kubelet.go, SyncPod: context.WithoutCancel, kubernetes/kubernetes issue 113606), and
	// containerd waits 30 s for the head of an answer (core/remotes/docker/registry.go, ResponseHeaderTimeout).
	testenv.Check(t, registry.Close())
	k.Kubectl("delete", "pod", "pulls-always", "if-not-present", "never-pulls")
}

// encryption: a Secret's value is not in the store, one command rotates the key, and everything stays readable.
func encryption(t *testing.T, s *harness.Server, do func(...string) string) {
	k := s.In(t)
	const word = "xyzzy-plugh-plover"
	k.Kubectl("create", "secret", "generic", "treasure", "--from-literal=word="+word)
	k.Kubectl("create", "configmap", "map", "--from-literal=word="+word)
	store := testenv.Must(
		clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + filepath.Join(s.DataDir, "run", "store.sock")}, DialTimeout: soon}))(t)
	defer store.Close()
	stored := func(key string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		r, err := store.Get(ctx, "/registry/"+key)
		testenv.NoError(t, err, "reading %s from the store", key)
		testenv.Require(t, len(r.Kvs) == 1, "reading %s from the store: %d keys", key, len(r.Kvs))
		return string(r.Kvs[0].Value)
	}
	testenv.Contains(t, stored("configmaps/default/map"), word, "the ConfigMap is stored as")
	sealed := stored("secrets/default/treasure")
	testenv.True(t, strings.HasPrefix(sealed, "k8s:enc:secretbox:") && !strings.Contains(sealed, word),
		"the Secret is stored as %q", sealed)
	before := do("secrets-encrypt", "status")
	do("secrets-encrypt", "rotate")
	if after := do("secrets-encrypt", "status"); after == before {
		t.Errorf("after a rotation the status is the same:\n%s", after)
	}
	if again := stored("secrets/default/treasure"); again[:30] == sealed[:30] {
		t.Errorf("after a rotation the Secret is still under the old key: %q", again[:30])
	}
	testenv.Equal(t, k.Kubectl("get", "secret", "treasure", "-o", "go-template={{.data.word | base64decode}}"), word, "after a rotation the Secret holds")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	testenv.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}
