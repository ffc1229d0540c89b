//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStoreBackup goes the way of a backup: saved from the running server, put back after things changed, and the
// cluster is as it was, for clients that saw what came later too.
func TestStoreBackup(t *testing.T) {
	m := harness.NewMachine(t)
	s := m.NewServer("--disable-agent")
	k := s.In(t)
	s.Start()
	awaitAPI(t, s)
	store := func(args ...string) (string, error) {
		return s.Run(s.Coracle(), append(append([]string{"store"}, args...), "--data-dir", s.DataDir)...)
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := store(args...)
		testenv.NoError(t, err, "%s", out)
		return out
	}
	fine := func() {
		t.Helper()
		harness.Eventually(t, soon, "nothing is wrong with the store", func() error { // a slow disk is reported for a while
			out, err := store("status")
			if err == nil && (!strings.Contains(out, "this server leads") || !strings.Contains(out, "Nothing is wrong")) {
				err = errors.New(out)
			}
			return err
		})
	}
	fine()
	metrics := k.Kubectl("get", "--raw", "/metrics")
	harness.Says(t, metrics, "\netcd_server_has_leader 1\n", "\netcd_server_is_leader 1\n", "\netcd_mvcc_db_total_size_in_bytes ", "\ncoracle_store_voters 1\n")

	k.Kubectl("create", "configmap", "changed", "--from-literal=v=before")
	k.Kubectl("create", "configmap", "deleted", "--from-literal=v=before")
	k.Kubectl("create", "secret", "generic", "secret", "--from-literal=v=before")
	backup := filepath.Join(m.Dir, "backup")
	harness.Says(t, must("backup", backup), "Saved the store to "+backup)
	harness.Says(t, must("verify", backup), "is an undamaged backup")

	k.Kubectl("patch", "configmap", "changed", "-p", `{"data":{"v":"after"}}`)
	k.Kubectl("delete", "configmap", "deleted")
	k.Kubectl("delete", "secret", "secret")
	k.Kubectl("create", "configmap", "later", "--from-literal=v=after")
	version := listVersion(t, k)
	revision := storeRevision(t, s)

	if out, err := store("restore", backup); err == nil {
		t.Fatalf("it was restored while the server ran:\n%s", out)
	} else {
		harness.Says(t, err.Error(), "the server runs", "Nothing was changed")
	}
	testenv.NoError(t, s.Stop())
	harness.Says(t, must("verify"), "is undamaged")
	harness.Says(t, must("restore", backup), "Restored", "The earlier store is kept in "+filepath.Join(s.DataDir, "server", "store.before-"))
	s.Start()
	awaitAPI(t, s)

	k.Await(soon, "configmap/changed", "{.data.v}", "before")
	k.Await(soon, "configmap/deleted", "{.data.v}", "before")
	k.Await(soon, "secret/secret", "{.data.v}", "YmVmb3Jl") // before
	k.Refused("not found", "get", "configmap", "later")     // it was made after the backup
	startsOver(t, k, version)
	storeStartsOver(t, s, revision)
	k.Kubectl("create", "configmap", "new", "--from-literal=v=new")
	k.Await(soon, "configmap/new", "{.data.v}", "new")
	fine()
	testenv.NoError(t, s.Stop())
}

func awaitAPI(t *testing.T, s *harness.Server) {
	t.Helper()
	harness.Eventually(t, longer, "the API server is ready", func() error {
		if err := s.Alive(); err != nil {
			return err
		}
		_, err := s.TryKubectl("get", "--raw", "/readyz")
		if err == nil {
			_, err = s.TryKubectl("get", "namespace", "default")
		}
		return err
	})
}

func listVersion(t *testing.T, k *harness.Kube) string {
	t.Helper()
	var list struct {
		Metadata struct{ ResourceVersion string }
	}
	testenv.NoError(t, json.Unmarshal([]byte(k.Kubectl("get", "--raw", "/api/v1/namespaces/default/configmaps")), &list))
	return list.Metadata.ResourceVersion
}

// startsOver watches from a version that a client saw before, and expects an error, so that it lists again: never
// silence, and never events as if nothing had happened.
func startsOver(t *testing.T, k *harness.Kube, version string) {
	t.Helper()
	var out string
	err := harness.Reaching(func() (err error) {
		out, err = k.Try("get", "--raw", "/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=120&resourceVersion="+version)
		return err
	})
	if err != nil {
		out += err.Error()
	}
	if !strings.Contains(out, "410") && !strings.Contains(out, "Expired") && !strings.Contains(out, "too old resource version") {
		t.Errorf("a watch from version %s, which is of after the backup, goes on: %q", version, out)
	}
	if now := listVersion(t, k); len(now) < len(version) || len(now) == len(version) && now <= version {
		t.Errorf("a list is of version %s, and a client has seen %s", now, version)
	}
}

func withStore(t *testing.T, s *harness.Server, f func(context.Context, *clientv3.Client) error) {
	t.Helper()
	c := testenv.Must(
		clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + filepath.Join(s.DataDir, "run", "store.sock")}, DialTimeout: soon}))(t)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	testenv.NoError(t, f(ctx, c))
}

func storeRevision(t *testing.T, s *harness.Server) (revision int64) {
	t.Helper()
	withStore(t, s, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Get(ctx, "/", clientv3.WithCountOnly())
		if err == nil {
			revision = r.Header.Revision
		}
		return err
	})
	return revision
}

// storeStartsOver watches the store itself from a revision that was seen before.
func storeStartsOver(t *testing.T, s *harness.Server, revision int64) {
	t.Helper()
	withStore(t, s, func(ctx context.Context, c *clientv3.Client) error {
		r, ok := <-c.Watch(ctx, "/", clientv3.WithPrefix(), clientv3.WithRev(revision+1))
		switch {
		case !ok:
			return fmt.Errorf("a watch of the store from revision %d hears nothing", revision+1)
		case r.CompactRevision <= revision:
			return fmt.Errorf("a watch of the store from revision %d goes on: %d events, %w", revision+1, len(r.Events), r.Err())
		}
		return nil
	})
}
