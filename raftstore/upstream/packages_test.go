// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUpstreamPackages runs all tests of upstream's etcd3 and cacher packages
// on our store: on one server, and on a follower of three. They live in internal
// test files, so it copies upstream's module, replaces the one file that starts
// etcd for them, and runs go test with a go.mod that points there.
func TestUpstreamPackages(t *testing.T) {
	if os.Getenv("CORACLE_TEST_UPSTREAM") == "" {
		t.Skip("set CORACLE_TEST_UPSTREAM=1 to compile and run upstream's own test packages, about six minutes")
	}
	work := t.TempDir()
	root := filepath.Dir(command(t, "", "go", "env", "GOMOD"))
	module := command(t, root, "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/apiserver")
	copied := filepath.Join(work, "apiserver")
	testenv.NoError(t, os.CopyFS(copied, os.DirFS(module)))
	server := testenv.Must(os.ReadFile("testdata/test_server.go.txt"))(t)
	target := filepath.Join(copied, "pkg/storage/etcd3/testserver/test_server.go")
	testenv.NoError(t, os.Remove(target)) // read-only, as the module cache is
	testenv.NoError(t, os.WriteFile(target, server, 0o644))
	for _, name := range []string{"go.mod", "go.sum"} {
		data := testenv.Must(os.ReadFile(filepath.Join(root, name)))(t)
		testenv.NoError(t, os.WriteFile(filepath.Join(work, name), data, 0o644))
	}
	modfile := filepath.Join(work, "go.mod")
	command(t, root, "go", "mod", "edit", "-replace", "k8s.io/apiserver="+copied, modfile)
	for _, servers := range []string{"1", "3"} {
		t.Run(servers, func(t *testing.T) {
			t.Setenv("CORACLE_TEST_SERVERS", servers) // test_server.go.txt heeds it
			t.Log(command(t, root, "go", "test", "-modfile", modfile, "-timeout", "30m",
				"k8s.io/apiserver/pkg/storage/etcd3", "k8s.io/apiserver/pkg/storage/cacher"))
		})
	}
}

func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	testenv.Require(t, err == nil, "%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	return strings.TrimSpace(string(out))
}
