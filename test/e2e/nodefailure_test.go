//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"
	"syscall"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNodeFailureLeavesServer: a server goes on when its node fails. It tries the node again by itself, in the same
// process. After a crash while the node starts, the next start serves first, without the node.
func TestNodeFailureLeavesServer(t *testing.T) {
	t.Parallel() // it mostly waits for the minute after which a node is tried again
	m := harness.NewMachine(t)
	ctx, endListener := context.WithCancel(t.Context())
	listener := m.Command(ctx, harness.Box(t), "serve", "10250")
	testenv.NoError(t, listener.Start())
	s := m.NewServer()
	s.StartAPI()
	s.Creates("configmap", "kept", "--from-literal=a=1")
	pid := s.Pid()
	harness.Eventually(t, soon, "the status says why the node is off", func() error {
		return statusLine(s, "node", "failed.*kubelet.*10250.*to try the node again after 1m0s")
	})
	testenv.NoError(t, statusLine(s, "pod network", "stopped"))
	endListener()
	_ = listener.Wait() // it was killed
	s.WaitReady()
	testenv.Equal(t, s.InLog("coracle starts"), 2, "starts of coracle, in process %d:", pid)
	testenv.NoError(t, s.Alive())

	// The minute of the start's trial is not over.
	testenv.NoError(t, syscall.Kill(pid, syscall.SIGABRT))
	s.WaitExit(soon)
	s.StartAPI()
	testenv.Equal(t, s.Kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.a}"), "1", "the store has")
	harness.Eventually(t, soon, "the status says that the node is off", func() error { return statusLine(s, "node", "failed.*SIGABRT.*after 5m0s") })
	testenv.NoError(t, s.Stop())
	s.Start() // by an operator, who need not wait
	harness.Eventually(t, soon, "the node runs", func() error { return statusLine(s, "node", "running") })
	testenv.NoError(t, s.Stop())
	testenv.False(t, strings.Contains(s.LogTail(40), "without waiting for them"), "parts of the node did not stop:\n%s", s.LogTail(40))
}
