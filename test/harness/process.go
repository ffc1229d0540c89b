// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Owns says whether the process behind a /proc path belongs to the machine.
func (m *Machine) Owns(procFile string) bool {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", m.pid))
	if err != nil {
		return false
	}
	its, err := os.Readlink(filepath.Join(filepath.Dir(procFile), "ns", "pid"))
	return err == nil && its == own
}

// HostPid turns a process id of the machine into the one that this process sees; 0 when there is none.
func (m *Machine) HostPid(inside int) int {
	statuses, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, file := range statuses {
		b, err := os.ReadFile(file)
		if err != nil || !m.Owns(file) {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
				f := strings.Fields(rest)
				if f[len(f)-1] == strconv.Itoa(inside) {
					pid, _ := strconv.Atoi(f[0])
					return pid
				}
			}
		}
	}
	return 0
}

// InitPid is the machine's first process as this process sees it: nsenter -t of it enters the machine.
func (m *Machine) InitPid() int { return m.pid }
