// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// PowerOff takes the machine away as a power cut does: nothing more comes from it, not even the end of its connections,
// and all its processes are gone. Its folders stay.
func (m *Machine) PowerOff() {
	m.T.Helper()
	m.unplug() // first: the kernel would close the processes' connections
	m.destroy()
}

// PowerOn starts a machine that was switched off. What ran on it is restarted by the scenario.
func (m *Machine) PowerOn() {
	m.T.Helper()
	m.boot()
	if strings.Contains(m.IP, ":") { // it comes back with the address that it had at first
		m.OnlyIPv6(m.IP)
	}
	if m.Site.dir != "" {
		m.Site.apply() // the link is a new one
	}
}

// unplug removes the machine's link. A namespace that a connection of this process is in would keep it.
func (m *Machine) unplug() {
	m.T.Helper()
	if out, err := m.Site.Command(context.Background(), "ip", "link", "del", fmt.Sprintf("machine%d", m.Number)).CombinedOutput(); err != nil {
		m.T.Fatalf("unplug machine %d: %v\n%s", m.Number, err, out)
	}
}

// LimitCPU gives all processes of the machine together that part of one processor, in percent; 0 lifts the limit. A
// machine that gets less than it wants stands still for the rest of each tenth of a second.
func (m *Machine) LimitCPU(percent int) {
	m.T.Helper()
	const period = 100 * time.Millisecond
	quota := time.Duration(percent) * period / 100
	for _, c := range m.cgroups {
		for file, text := range map[string]string{
			"cpu.cfs_quota_us": orUnlimited(percent, "-1", strconv.FormatInt(quota.Microseconds(), 10)),
			"cpu.max":          orUnlimited(percent, "max", strconv.FormatInt(quota.Microseconds(), 10)),
		} {
			path := filepath.Join(c, file)
			if _, err := os.Stat(path); err != nil {
				continue
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				m.T.Fatalf("limit machine %d's processor time: %v", m.Number, err)
			}
			return
		}
	}
	m.T.Fatalf("machine %d has no cgroup with a limit of processor time", m.Number)
}

// LimitMemory bounds the memory of all processes of the machine together, in bytes.
func (m *Machine) LimitMemory(bytes int64) {
	m.T.Helper()
	for _, c := range m.cgroups {
		for _, file := range []string{"memory.limit_in_bytes", "memory.max"} {
			path := filepath.Join(c, file)
			if _, err := os.Stat(path); err != nil {
				continue
			}
			testenv.NoError(m.T, os.WriteFile(path, []byte(strconv.FormatInt(bytes, 10)), 0o644))
			return
		}
	}
	m.T.Fatalf("machine %d has no cgroup with a limit of memory", m.Number)
}

func orUnlimited(percent int, unlimited, limit string) string {
	if percent == 0 {
		return unlimited
	}
	return limit
}
