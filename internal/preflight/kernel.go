// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/internal/filewatch"
)

// Kernel versions: Kubernetes as a whole needs 4.19, and kube-proxy's nftables mode needs 5.13 (its documentation).
var (
	oldestKernel   = [2]int{4, 19}
	nftablesKernel = [2]int{5, 13}
)

func (r *run) kernel() {
	release := strings.TrimSpace(r.read("proc/sys/kernel/osrelease"))
	v, ok := kernelVersion(release)
	switch {
	case !ok:
		r.warn("kernel", fmt.Sprintf("the version %q is not understood", release), "Linux 5.13 or newer is needed")
	case lessVersion(v, oldestKernel):
		r.addFailure("kernel", "Linux "+release+" is too old", "install Linux 5.13 or newer")
	case lessVersion(v, nftablesKernel):
		r.warn("kernel", "Linux "+release+" lacks parts of nftables that Services use", "install Linux 5.13 or newer")
	default:
		r.ok("kernel", "Linux "+release)
	}
}

func kernelVersion(release string) (v [2]int, ok bool) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return v, false
	}
	minor := parts[1]
	if i := strings.IndexFunc(minor, func(c rune) bool { return c < '0' || c > '9' }); i >= 0 {
		minor = minor[:i]
	}
	a, errA := strconv.Atoi(parts[0])
	b, errB := strconv.Atoi(minor)
	return [2]int{a, b}, errA == nil && errB == nil
}

func lessVersion(a, b [2]int) bool { return a[0] < b[0] || (a[0] == b[0] && a[1] < b[1]) }

func (r *run) namespaces() {
	var missing []string
	for _, ns := range []string{"net", "mnt", "pid", "ipc", "uts", "cgroup"} {
		if !r.exists("proc/self/ns/" + ns) {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		r.addFailure("namespaces", "the kernel has no "+strings.Join(missing, ", ")+" namespaces", "use a kernel with containers support "+
			"(CONFIG_NAMESPACES and its parts)")
		return
	}
	r.ok("namespaces", "net, mnt, pid, ipc, uts, cgroup")
}

// capabilities holds the bit numbers of capabilities (capability(7)).
var capabilities = map[string]uint{"CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21,
	"CAP_SYS_RESOURCE": 24, "CAP_MKNOD": 27}

func (r *run) rights() {
	if !r.Root {
		r.warn("rights", "this user is not root, so some things cannot be found out; coracle server itself runs as root",
			"run it with sudo")
		return
	}
	effective, err := strconv.ParseUint(fieldValue(r.read("proc/self/status"), "CapEff"), 16, 64)
	if err != nil {
		r.warn("rights", "the rights of this process cannot be read from /proc/self/status", "mount /proc")
		return
	}
	var missing []string
	for _, name := range []string{"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_MKNOD"} {
		if effective&(1<<capabilities[name]) == 0 {
			missing = append(missing, name)
		}
	}
	switch {
	case len(missing) > 0:
		r.addFailure("rights", "root lacks "+strings.Join(missing, ", ")+" here", "this seems to be a container: make it a privileged one")
	case effective&(1<<capabilities["CAP_SYS_RESOURCE"]) == 0:
		r.warn("rights", "root lacks CAP_SYS_RESOURCE here: pods get by, but no pod can be shielded from the kernel when memory runs out",
			"nothing has to be done; a privileged container or a machine of its own has it")
	default:
		r.ok("rights", "root with all capabilities that pods need")
	}
}

// fieldValue returns the value behind "name:" in a file such as /proc/self/status.
func fieldValue(text, name string) string {
	for line := range strings.Lines(text) {
		if key, rest, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func (r *run) devices() {
	if !r.exists("dev/kmsg") {
		r.addFailure("devices", "/dev/kmsg is missing; the kubelet reads it to learn of processes that the kernel killed",
			"in an LXC container: lxc.mount.entry = /dev/kmsg dev/kmsg none bind,optional,create=file")
		return
	}
	r.ok("devices", "/dev/kmsg")
}

// limits checks the limits of inotify, which on many small systems are too low for log followers and other watchers.
func (r *run) limits() {
	instances, err := strconv.Atoi(strings.TrimSpace(r.read("proc/sys/fs/inotify/max_user_instances")))
	if err != nil {
		r.warn("limits", "the kernel has no inotify", "use a kernel with CONFIG_INOTIFY_USER")
		return
	}
	if instances < filewatch.Instances {
		r.ok("limits", fmt.Sprintf("%d inotify instances; coracle raises that to %d when it starts, where the machine lets it", instances,
			filewatch.Instances))
		return
	}
	r.ok("limits", fmt.Sprintf("%d inotify instances", instances))
}

func (r *run) clock() {
	now := r.Now()
	if now.Year() < 2025 {
		r.addFailure("clock", "the clock says "+now.Format("2006-01-02")+", so certificates would not be valid",
			"set it (date -s), and let NTP or a clock chip keep it")
		return
	}
	r.ok("clock", now.UTC().Format("2006-01-02 15:04 MST"))
}
