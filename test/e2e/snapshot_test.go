//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestSnapshotOnBlankMachine: a board is lost, and a new one under its name gets the cluster from a snapshot and the token.
func TestSnapshotOnBlankMachine(t *testing.T) {
	site := harness.NewSite(t)
	lost := site.NewMachine().NewServer()
	lost.AddBoxImage()
	lost.Start()
	lost.WaitReady()
	lost.Apply(spreadDeployment)
	lost.Kubectl("create", "secret", "generic", "treasure", "--from-literal=v=gold")
	readyPods(lost, "2")
	out := snapshot(t, lost, "save", "--name", "drill")
	file := filepath.Join(lost.DataDir, "snapshots", strings.Fields(snapshot(t, lost, "list"))[5])
	says(t, out, "Saved the cluster to "+file)
	token, err := lost.Run(lost.Coracle(), "token", "print", "--server", "--data-dir", lost.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	lost.Kubectl("create", "configmap", "later")
	seen := listVersion(t, lost.In(t))
	lost.Kill()

	s := site.NewMachine().NewServer("--node-name", lost.NodeName())
	s.AddBoxImage()
	copied, admin := filepath.Join(s.Dir, "saved"), filepath.Join(s.Dir, "admin.yaml")
	copyTo(t, file, copied)
	copyTo(t, lost.Kubeconfig, admin)
	says(t, snapshot(t, s, "restore", copied, "--token", strings.TrimSpace(token)), "Restored "+copied, "Start this server")
	s.Start()
	s.WaitReady()
	k := s.In(t)
	k.Await(soon, "secret/treasure", "{.data.v}", "Z29sZA==") // gold
	withStore(t, s, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Get(ctx, "/registry/secrets/default/treasure")
		if err == nil && (len(r.Kvs) != 1 || !strings.HasPrefix(string(r.Kvs[0].Value), "k8s:enc:")) {
			err = fmt.Errorf("the Secret is not encrypted in the store: %v", r.Kvs)
		}
		return err
	})
	if out, err := k.Try("get", "configmap", "later"); err == nil {
		t.Errorf("what was made after the snapshot is there:\n%s", out)
	}
	startsOver(t, k, seen)
	if out, err := s.Run(s.Coracle(), "kubectl", "--kubeconfig", admin, "auth", "whoami", "-o", "jsonpath={.status.userInfo.groups}"); err != nil || !strings.Contains(out, "system:masters") {
		t.Errorf("the administrator's kubeconfig of before: %s, %v", out, err)
	}
	readyPods(s, "2")
	k.Kubectl("exec", "deployment/d", "--", "true")
	k.Kubectl("scale", "deployment/d", "--replicas=3")
	readyPods(s, "3")
}

// TestSnapshotUnderRunningNodes: an old snapshot comes back while a node and its pods run on. The pods of the snapshot stay
// the same containers, those that came later go.
func TestSnapshotUnderRunningNodes(t *testing.T) {
	site := harness.NewSite(t)
	s := site.NewMachine().NewServer("--disable-agent")
	s.Start()
	waitAPI(s)
	a := site.NewMachine().NewAgent(s)
	a.AddBoxImage()
	a.Start()
	harness.Eventually(t, soon, "the agent's node is ready", func() error { return nodeReady(s, a) })
	s.Apply(spreadDeployment)
	readyPods(s, "2")
	k := s.In(t)
	before := containers(k)
	snapshot(t, s, "save")
	name := strings.Fields(snapshot(t, s, "list"))[5]
	k.Kubectl("scale", "deployment/d", "--replicas=4")
	k.Kubectl("create", "configmap", "later")
	readyPods(s, "4")
	seen := listVersion(t, k)

	if out, err := s.Run(s.Coracle(), "snapshot", "restore", name, "--data-dir", s.DataDir); err == nil {
		t.Fatalf("it was restored while the server ran:\n%s", out)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	says(t, snapshot(t, s, "restore", name), "is kept in "+filepath.Join(s.DataDir, "server.before-"))
	s.Start()
	waitAPI(s)
	startsOver(t, k, seen)
	harness.Eventually(t, longer, "the pods of the snapshot run as before, and no others", func() error {
		if err := nodeReady(s, a); err != nil {
			return err
		}
		if got := containers(k); got != before {
			return fmt.Errorf("containers are\n%s, were\n%s\n%s", got, before, a.LogTail(5))
		}
		out, err := a.Run(a.Coracle(), "ctr", "-n", "k8s.io", "--address", filepath.Join(a.DataDir, "run", "containerd", "containerd.sock"), "tasks", "ls", "-q")
		if n := len(strings.Fields(out)); err == nil && n != 4 {
			err = fmt.Errorf("%d containers run, want 2 and their sandboxes", n)
		}
		return err
	})
	k.Kubectl("scale", "deployment/d", "--replicas=3")
	readyPods(s, "3")
}

func snapshot(t *testing.T, s *harness.Server, args ...string) string {
	t.Helper()
	out, err := s.Run(s.Coracle(), append(append([]string{"snapshot"}, args...), "--data-dir", s.DataDir)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func readyPods(s *harness.Server, want string) {
	s.T.Helper()
	harness.Eventually(s.T, longer, want+" pods of the Deployment are ready", func() error {
		out, err := s.TryKubectl("get", "deployment", "d", "-o", "jsonpath={.status.readyReplicas} {.status.replicas}")
		if err == nil && out != want+" "+want {
			err = fmt.Errorf("ready and all: %q", out)
		}
		return err
	})
}

func copyTo(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
