//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestMachineIsIsolated checks what the other scenarios take for granted of the host they run on.
func TestMachineIsIsolated(t *testing.T) {
	m := harness.NewMachine(t)
	for _, absent := range []string{"nft", "iptables", "ip6tables", "iptables-restore"} {
		if out, err := m.Run("sh", "-c", "command -v "+absent); err == nil {
			t.Errorf("%s is on the PATH: %s", absent, out)
		}
	}
	if out, err := m.Run("/usr/sbin/ip", "-br", "addr"); err != nil || !strings.Contains(out, harness.NodeIP) || strings.Count(out, "\n") != 2 {
		t.Errorf("interfaces: %v\n%s", err, out)
	}
	if out, err := m.Run("cat", "/proc/self/cgroup"); err != nil || strings.Contains(out, "..") {
		t.Errorf("cgroups of a process on the machine: %v\n%s", err, out)
	}
	if out, err := m.Run("ls", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"); err != nil {
		t.Logf("cgroup v2? %v\n%s", err, out)
	}
	if out, err := harness.Output(m.Outside(context.Background(), "/usr/sbin/ip", "-br", "addr")); err != nil || !strings.Contains(out, harness.OutsideIP) {
		t.Errorf("outside: %v\n%s", err, out)
	}
}
