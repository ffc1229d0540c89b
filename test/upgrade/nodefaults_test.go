//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFaultsOfNodesGoBack: versions whose node works as far as can be seen from outside, since rules and containers of
// the version before are still there, are refused. So is one that leaves a file that the kubelet cannot read.
func TestFaultsOfNodesGoBack(t *testing.T) {
	harness.ByHand(t)
	twoLevels(t)
	h := newByInstaller(t, harness.NewMachine(t), "server", "--node-name", "board")
	h.kubectl("wait", "--for=condition=Ready", "node/board", "--timeout=120s")
	h.workload("board")
	h.refuses("writes no rules and keeps the old ones", h.faulty("keeps-rules"),
		"no commit within 60 s: part service proxy: starting: its first rules are not written yet")

	h.refuses("leaves a file that the kubelet cannot read", h.faulty("changes-state"), "3 starts without a commit")
	log := h.must("grep", "it is as before that version again", "/var/log/coracle.log")
	testenv.Equal(t, strings.Count(log, "file=/var/lib/kubelet/cpu_manager_state"), 1, "times in %s:", log)

	t.Run("cannot load a shim", func(t *testing.T) {
		h.t = t
		current, before := h.state().Current, strings.Fields(h.running())
		out, err := h.Run("sh", "-c", "exec coracle upgrade --here "+h.faulty("breaks-shim")+" 2>&1")
		t.Logf("%s", out)
		var exit *exec.ExitError
		testenv.True(t, errors.As(err, &exit) && exit.ExitCode() == 3, "the command ended with %v", err)
		for _, want := range []string{"no commit within 60 s: containers: restarted: web of default/web-",
			"shims: 1 could not be loaded, so their containers were ended"} {
			testenv.Contains(t, out, want, "the command says")
		}
		h.serves(current)
		h.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
		after := strings.Fields(h.running()) // of each of two pods its UID, its container and the restarts; processes
		changed := 0
		for i, word := range before {
			if after[i] != word {
				changed++
			}
		}
		testenv.Equal(t, changed, 2, "a container and its restarts: before %v, after %v:", before, after)
	})
}
