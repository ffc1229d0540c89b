// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/internal/memory"
)

// Memory that a server with a few pods needs, in MB.
const (
	minMemory  = 256
	goodMemory = 512
)

func (r *run) memory() {
	limit, err := memory.Read(r.FS, "self")
	if err != nil {
		r.warn("memory", "its size cannot be read: "+err.Error(), "mount /proc")
		return
	}
	total, allowed := limit.Machine>>20, limit.Bytes>>20
	found := fmt.Sprintf("%d MB", total)
	switch {
	case total < minMemory:
		r.addFailure("memory", found+" are too few for a server and pods", fmt.Sprintf("use a machine with at least %d MB", goodMemory))
	case allowed < total && allowed < goodMemory: // the service may be in another control group than this command
		r.warn("memory", "of "+found+" this command may use only "+limit.String(),
			fmt.Sprintf("let coracle run in a control group with at least %d MB", goodMemory))
	case total < goodMemory:
		r.warn("memory", found+" leave little for pods", "set memory limits on pods; coracle itself takes about 200 MB")
	default:
		r.ok("memory", found)
	}
}

func (r *run) swap() {
	lines := strings.Split(strings.TrimSpace(r.read("proc/swaps")), "\n")
	if len(lines) <= 1 {
		r.ok("swap", "none")
		return
	}
	r.ok("swap", fmt.Sprintf("%d area(s); pods do not use it", len(lines)-1))
}

// cgroups checks whether the control group controllers exist that containers need.
func (r *run) cgroups() {
	if text := r.read("sys/fs/cgroup/cgroup.controllers"); text != "" {
		have := strings.Fields(text)
		r.controllers("control groups", "version 2", func(c string) bool { return slices.Contains(have, c) },
			[]string{"cpu", "memory", "pids"}, []string{"cpuset", "io"})
		return
	}
	enabled := map[string]bool{}
	for line := range strings.Lines(r.read("proc/cgroups")) {
		if f := strings.Fields(line); len(f) == 4 && f[3] == "1" && !strings.HasPrefix(line, "#") {
			enabled[f[0]] = r.exists("sys/fs/cgroup/" + f[0])
		}
	}
	if len(enabled) == 0 {
		r.addFailure("control groups", "none are mounted", "mount them: mount -t cgroup2 none /sys/fs/cgroup; most init systems do (Alpine: "+
			"rc-update add cgroups)")
		return
	}
	if r.controllers("control groups", "version 1", func(c string) bool { return enabled[c] },
		[]string{"cpu", "cpuacct", "memory", "devices", "pids"}, []string{"cpuset"}) {
		r.warn("control groups", "version 1, which works but is on its way out upstream", "boot with systemd.unified_cgroup_hierarchy=1, "+
			"or a newer distribution, for version 2")
	}
}

// controllers reports missing controllers, and returns whether all exist. For version 1, the caller reports that all
// exist.
func (r *run) controllers(name, version string, has func(string) bool, needed, useful []string) bool {
	var missing, weak []string
	for _, c := range needed {
		if !has(c) {
			missing = append(missing, c)
		}
	}
	for _, c := range useful {
		if !has(c) {
			weak = append(weak, c)
		}
	}
	switch {
	case slices.Contains(missing, "memory"):
		r.addFailure(name, version+" without "+strings.Join(missing, ", "), "add cgroup_enable=memory cgroup_memory=1 to the kernel's command "+
			"line (Raspberry Pi: /boot/firmware/cmdline.txt) and reboot")
	case len(missing) > 0:
		r.addFailure(name, version+" without "+strings.Join(missing, ", "), "use a kernel that has them; in a container, pass them through")
	case len(weak) > 0:
		r.warn(name, version+" without "+strings.Join(weak, ", ")+"; what needs it does not work", "use a kernel that has them if pods "+
			"are to be bound to cores or limited in disk traffic")
	case version == "version 2":
		r.ok(name, version)
	default:
		return true
	}
	return false
}
