//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// mostData is how large a directory may be that is kept with the sources, in bytes.
const mostData = 300_000

// TestMakeLevelData writes the data directory of a server into the file that CORACLE_LEVEL_DATA names, as level1 says.
// Its keys are made for it. make level-data runs it, once for each level.
func TestMakeLevelData(t *testing.T) {
	file := os.Getenv("CORACLE_LEVEL_DATA")
	if file == "" {
		t.Skip("CORACLE_LEVEL_DATA names no file: make level-data writes one")
	}
	s := harness.NewMachine(t).NewServer("--disable-agent", "--disable", "coredns,servicelb,network-policy,local-storage,metrics-server,"+
		"helm-controller,ingress,gateway,console,runtimes")
	s.StartAPI()
	kube := s.Namespace(t, namespace)
	kube.Apply(kept)
	harness.Eventually(t, harness.Soon, "an object of the kind that was defined", func() error {
		return harness.Succeeds(kube.TryApply(thing))
	})
	run := func(args ...string) string {
		t.Helper()
		return testenv.Must(s.Run(s.Coracle(), append(args, "--data-dir", s.DataDir)...))(t)
	}
	run("token", "rotate")
	run("secrets-encrypt", "rotate")
	run("snapshot", "save")
	name := strings.Fields(run("snapshot", "list"))[5] // behind the heading
	testenv.NoError(t, s.Stop())
	run("snapshot", "restore", name) // its store begins with a snapshot
	s.StartAPI()
	kube.Kubectl("delete", "poddisruptionbudget", "kept")
	c := storeOf(t, s)
	everyRequest(t, c, "/then/")
	expected := expect(t, c)
	testenv.NoError(t, c.Close())
	testenv.NoError(t, s.Stop())
	testenv.NoError(t, os.WriteFile(filepath.Join(s.DataDir, expectedFile), []byte(expected), 0o600))
	pack(t, s.DataDir, file)
}

// storeOf is a client of a server's store.
func storeOf(t *testing.T, s *harness.Server) *clientv3.Client {
	t.Helper()
	socket := s.Seen("run", "store.sock")
	dial := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	})
	const endpoint = "127.0.0.1:1" // not used
	return testenv.Must(clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{dial},
	}))(t)
}

// expect are the lines of expectedFile, without those of keys that a server writes while it ends.
func expect(t *testing.T, c *clientv3.Client) string {
	t.Helper()
	changing := []string{"leases/", "masterleases/", "events/", "endpointslices/", "services/endpoints/"}
	all := testenv.Must(c.Get(t.Context(), "", clientv3.WithPrefix()))(t)
	var lines strings.Builder
	for _, kv := range all.Kvs {
		if !slices.ContainsFunc(changing, func(prefix string) bool { return strings.HasPrefix(string(kv.Key), "/registry/"+prefix) }) {
			lines.WriteString(lineOf(kv) + "\n")
		}
	}
	return lines.String()
}

// pack writes a server's folder and expectedFile into an archive.
func pack(t *testing.T, dataDir, file string) {
	t.Helper()
	c := exec.Command("tar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-C", dataDir, "-czf", file,
		"--exclude=RESERVE", "server", expectedFile)
	c.Env = append(os.Environ(), "GZIP=-9")
	testenv.Must(harness.Output(c))(t)
	size := testenv.Must(os.Stat(file))(t).Size()
	t.Logf("%s has %d bytes", file, size)
	testenv.True(t, size < mostData, "%s has %d bytes, at most %d", file, size, mostData)
}
