//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// slacks fails unless all threads of an agent have its timer slack, and a process in its pod the kernel's.
func slacks(t *testing.T, s, agent *harness.Server, pod string) {
	t.Helper()
	threads := testenv.Must(os.ReadDir(fmt.Sprintf("/proc/%d/task", agent.Pid())))(t)
	for _, thread := range threads {
		b, err := os.ReadFile("/proc/" + thread.Name() + "/timerslack_ns")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the thread has ended since
		}
		if got := strings.TrimSpace(string(b)); err != nil || got != "5000000" {
			t.Errorf("the agent's thread %s has a timer slack of %q ns; %v", thread.Name(), got, err)
		}
	}
	if got := s.Insists("exec", pod, "--", "cat", "/proc/self/timerslack_ns"); got != "50000" {
		t.Errorf("a process in the agent's pod has a timer slack of %q ns", got)
	}
}
