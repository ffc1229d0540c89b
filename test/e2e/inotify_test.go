//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// withoutInotify starts a server when another program of its user has all inotify instances that there are. A user
// namespace has a limit of its own, which the server takes for no reason to raise the kernel's, and cannot change: so
// programs beside the machine keep theirs.
const withoutInotify = `#!/bin/sh
exec unshare --user --map-root-user sh -euc '
echo 1 >/proc/sys/user/max_inotify_instances
: >"$0.watched"
tail -f "$0.watched" &
until ls -l /proc/$!/fd | grep -q anon_inode:inotify; do sleep 0.1; done
exec "$CORACLE" "$@"' "$0" "$@"
`

// TestServerWithoutInotifyInstances: a server whose user has no inotify instance left starts and serves, says which
// changes it notices late, and notices them.
func TestServerWithoutInotifyInstances(t *testing.T) {
	t.Parallel() // it mostly waits
	if err := exec.CommandContext(t.Context(), "unshare", "--user", "--map-root-user", "true").Run(); err != nil {
		testenv.Missing(t, testenv.Root, "a user namespace: %v", err)
	}
	s := harness.NewMachine(t).NewServer("--disable-agent")
	s.Bin = filepath.Join(s.Dir, "without-inotify")
	testenv.NoError(t, os.WriteFile(s.Bin, []byte(withoutInotify), 0o755))
	s.Env = append(s.Env, "CORACLE="+s.Coracle())
	s.StartAPI()
	fds := testenv.Must(filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.Pid())))(t)
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.Contains(to, "inotify") {
			t.Fatalf("the server has an inotify instance: %s", fd)
		}
	}
	testenv.True(t, len(fds) > 10, "the server has %d descriptors", len(fds))
	harness.Eventually(t, soon, "the status says what is noticed late", func() error {
		return statusLine(s, "watch of the manifests' folder", "degraded.*within 15s")
	})
	manifest := filepath.Join(s.DataDir, "manifests", "late.yaml")
	testenv.NoError(t, os.WriteFile(manifest, []byte("{apiVersion: v1, kind: ConfigMap, metadata: {name: late, namespace: default}}"), 0o600))
	began := time.Now()
	s.In(t).Await(soon, "configmap/late", "{.metadata.name}", "late")
	t.Logf("the manifest was noticed after %v", time.Since(began))
	testenv.NoError(t, s.Stop())
}
