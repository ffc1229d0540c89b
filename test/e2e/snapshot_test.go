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

// TestSnapshotOnBlankMachine: a board is lost, and a new one under its name gets the cluster from a snapshot and the
// token.
func TestSnapshotOnBlankMachine(t *testing.T) {
	site := harness.NewSite(t)
	lost := site.NewMachine().NewServer()
	lost.AddBoxImage()
	lost.StartNode()
	lost.Apply(spreadDeployment)
	lost.Kubectl("create", "secret", "generic", "treasure", "--from-literal=v=gold")
	readyPods(lost, "2")
	out := snapshot(t, lost, "save", "--name", "drill")
	file := filepath.Join(lost.DataDir, "snapshots", strings.Fields(snapshot(t, lost, "list"))[5])
	harness.Says(t, out, "Saved the cluster to "+file)
	token := testenv.Must(lost.Run(lost.Coracle(), "token", "print", "--server", "--data-dir", lost.DataDir))(t)
	lost.Kubectl("create", "configmap", "later")
	seen := listVersion(t, lost.In(t))
	lost.Kill()

	s := site.NewMachine().NewServer("--node-name", lost.NodeName())
	s.AddBoxImage()
	copied, admin := filepath.Join(s.Dir, "saved"), filepath.Join(s.Dir, "admin.yaml")
	copyTo(t, file, copied)
	copyTo(t, lost.Kubeconfig, admin)
	harness.Says(t, snapshot(t, s, "restore", copied, "--token", strings.TrimSpace(token)), "Restored "+copied, "Start this server")
	s.StartNode()
	k := s.In(t)
	k.Await(soon, "secret/treasure", "{.data.v}", "Z29sZA==") // gold
	withStore(t, s, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Get(ctx, "/registry/secrets/default/treasure")
		if err == nil && (len(r.Kvs) != 1 || !strings.HasPrefix(string(r.Kvs[0].Value), "k8s:enc:")) {
			err = fmt.Errorf("the Secret is not encrypted in the store: %v", r.Kvs)
		}
		return err
	})
	k.Refused("not found", "get", "configmap", "later") // it was made after the snapshot
	startsOver(t, k, seen)
	var groups string
	err := harness.Reaching(func() (err error) {
		groups, err = s.Run(s.Coracle(), "kubectl", "--kubeconfig", admin, "auth", "whoami", "-o", "jsonpath={.status.userInfo.groups}")
		return err
	})
	testenv.True(t, err == nil && strings.Contains(groups, "system:masters"),
		"the administrator's kubeconfig of before: %s, %v", groups, err)
	// What the API says of the pods is the snapshot's word until the kubelet has started them again.
	harness.Eventually(t, soon, "a command runs in a pod", func() error {
		_, err := k.Try("exec", "deployment/d", "--", "true")
		return err
	})
	readyPods(s, "2")
	k.Kubectl("scale", "deployment/d", "--replicas=3")
	readyPods(s, "3")
}

// TestSnapshotUnderRunningNodes: an old snapshot comes back while a node and its pods run on. The pods of the snapshot
// stay the same containers, those that came later go.
func TestSnapshotUnderRunningNodes(t *testing.T) {
	t.Parallel() // it mostly waits
	site := harness.NewSite(t)
	s := site.NewMachine().NewServer("--disable-agent")
	s.StartAPI()
	a := site.NewMachine().NewAgent(s)
	a.AddBoxImage()
	a.Start()
	harness.Eventually(t, longer, "the agent's node is ready", func() error { return s.NodeReady(a) })
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
	testenv.NoError(t, s.Stop())
	harness.Says(t, snapshot(t, s, "restore", name), "is kept in "+filepath.Join(s.DataDir, "server.before-"))
	s.StartAPI()
	startsOver(t, k, seen)
	harness.Eventually(t, longer, "the pods of the snapshot run as before, and no others", func() error {
		if err := s.NodeReady(a); err != nil {
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
	testenv.NoError(t, err, "%s", out)
	return out
}

func readyPods(s *harness.Server, want string) {
	s.T.Helper()
	s.In(s.T).Await(longer, "deployment/d", "{.status.readyReplicas} {.status.replicas}", want+" "+want)
}

func copyTo(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	testenv.NoError(t, err)
}

// TestSnapshotOfThreeServers: one of them is restored, and is alone. One with the store of before does not vote with
// it; the others join it again.
func TestSnapshotOfThreeServers(t *testing.T) {
	site := harness.NewSite(t)
	servers := threeServers(site)
	first := servers[0]
	members := func(s *harness.Server, voters int) error {
		out, err := s.Run(s.Coracle(), "store", "status", "--data-dir", s.DataDir)
		if n := strings.Count(out, " voter ") + strings.Count(out, " leader "); err == nil && n != voters {
			err = fmt.Errorf("%d voters, want %d:\n%s", n, voters, out)
		}
		return err
	}
	harness.Eventually(t, soon, "all three vote", func() error { return members(first, 3) })
	second, third := servers[1], servers[2]
	first.Creates("configmap", "kept")
	harness.Eventually(t, soon, "a snapshot is saved", func() error { // servers that elect another leader refuse it meanwhile
		return harness.Succeeds(second.Run(second.Coracle(), "snapshot", "save", "--data-dir", second.DataDir))
	})
	name := strings.Fields(snapshot(t, second, "list"))[5]
	first.Creates("configmap", "later")
	for _, s := range servers {
		testenv.NoError(t, s.Stop())
	}
	harness.Says(t, snapshot(t, second, "restore", name), "If the cluster had other servers")
	second.StartAPI()
	alone := func() (term uint64) {
		t.Helper()
		var objects string
		var store struct {
			Term    uint64
			Members []struct{ Role string }
		}
		harness.Eventually(t, soon, "the restored server answers", func() (err error) { // a busy one may be late
			if objects, err = second.TryKubectl("get", "configmaps", "-o", "name"); err != nil {
				return err
			}
			out, err := second.Run(second.Coracle(), "store", "status", "--data-dir", second.DataDir, "-o", "json")
			if err == nil {
				err = json.Unmarshal([]byte(out), &store)
			}
			return err
		})
		if !strings.Contains(objects, "kept") || strings.Contains(objects, "later") || len(store.Members) != 1 {
			t.Fatalf("beside others, the restored server has %v and\n%s\n%s", store.Members, objects, third.LogTail(10))
		}
		return store.Term
	}
	term := alone()
	third.Start() // with its store of before, against all advice
	harness.Eventually(t, soon, "the store of before is open", func() error {
		out, err := third.Run(third.Coracle(), "status", "--data-dir", third.DataDir)
		if !strings.Contains(out, "store") && (err == nil || !strings.Contains(err.Error(), "store")) {
			return fmt.Errorf("status says %s, %w", out, err)
		}
		return nil
	})
	for range 20 { // elections begin after a second without a leader
		if now := alone(); now != term {
			t.Fatalf("a server with the store of before has made the restored one's term %d, which was %d:\n%s", now, term, third.LogTail(10))
		}
		time.Sleep(500 * time.Millisecond) // the pace of the questions, not a wait for something
	}
	third.Kill()
	token := testenv.Must(second.Run(second.Coracle(), "token", "print", "--server", "--data-dir", second.DataDir))(t)
	for _, s := range []*harness.Server{first, third} {
		testenv.NoError(t, os.Rename(filepath.Join(s.DataDir, "server"), filepath.Join(s.DataDir, "server.old")))
		s.Args = append(s.Args, "--server", "https://"+second.IP+":6443", "--token", strings.TrimSpace(token))
		s.StartAPI()
	}
	harness.Eventually(t, soon, "all three vote again", func() error { return members(second, 3) })
	testenv.Equal(t, third.Insists("get", "configmap", "kept", "-o", "name"), "configmap/kept", "a server that joined again has")
}
