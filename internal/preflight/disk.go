// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// minSpace and goodSpace are sizes in bytes. The kubelet evicts pods when less than evictShare of the disk is free.
const (
	minSpace   = 1 << 30
	goodSpace  = 4 << 30
	evictShare = 0.15
)

// mounts returns this process' mounts. It returns none where they cannot be read.
func (r *run) mounts() []*mountinfo.Info {
	all, _ := mountinfo.GetMountsFromReader(strings.NewReader(r.read("proc/self/mountinfo")), nil)
	return all
}

func hasOption(m *mountinfo.Info, option string) bool {
	return slices.Contains(strings.Split(m.Options, ","), option)
}

// mountOf returns the mount on which a path is: the one with the longest mount point that is a prefix of the path, and
// the last of several with the same mount point.
func (r *run) mountOf(p string) *mountinfo.Info {
	best := &mountinfo.Info{}
	for _, m := range r.mounts() {
		inside := m.Mountpoint == "/" || p == m.Mountpoint || strings.HasPrefix(p, m.Mountpoint+"/")
		if inside && len(m.Mountpoint) >= len(best.Mountpoint) {
			best = m
		}
	}
	return best
}

func (r *run) mount() {
	m := r.mountOf(path.Clean(r.DataDir))
	for _, bad := range []struct {
		option, why string
		level       Level
	}{
		{"ro", "cannot be written to", Fail},
		{"noexec", "runs no programs, and those that start containers are unpacked there", Fail},
		{"nosuid", "takes no notice of set-user-id programs, which some images have", Warn},
	} {
		if hasOption(m, bad.option) {
			r.results = append(r.results, Result{"mount", bad.level,
				fmt.Sprintf("the file system at %s, which holds %s, is mounted %s: it %s", m.Mountpoint, r.DataDir, bad.option, bad.why),
				fmt.Sprintf("mount it without %s (/etc/fstab), or choose another folder with --data-dir", bad.option)})
			return
		}
	}
	if !strings.Contains(m.Optional, "shared:") {
		r.warn("mount", fmt.Sprintf("the mount at %s is private, so volumes with mountPropagation do not reach the host", m.Mountpoint),
			"mount --make-rshared /")
		return
	}
	r.ok("mount", m.Mountpoint+", shared, runs programs")
}

// remoteTypes are types of file systems that belong to other machines or programs. On these, the durability of
// acknowledged writes depends on the other side.
var remoteTypes = []string{"nfs", "cifs", "smb2", "9p", "fuse", "ceph"}

func (r *run) space() {
	s, err := r.Probe.Space(r.DataDir)
	if err != nil {
		r.warn("disk", fmt.Sprintf("cannot be examined (%v)", err), "choose another folder with --data-dir")
		return
	}
	found := fmt.Sprintf("%s, %.1f of %.1f GB free", s.Type, float64(s.Free)/1e9, float64(s.Total)/1e9)
	free := float64(s.Free) / float64(max(s.Total, 1))
	switch {
	case s.Free < minSpace:
		r.addFailure("disk", found+": too little", "make room below "+r.DataDir+", or choose another folder with --data-dir")
	case slices.Contains(remoteTypes, s.Type):
		r.warn("disk", found+": a file system of another machine or program; the store's files belong on a disk of this one",
			"choose a folder on a local disk with --data-dir")
	case s.Type == "tmpfs":
		r.warn("disk", found+": in memory, so the cluster is gone after a reboot", "choose a folder on a disk with --data-dir")
	case s.Inodes > 0 && s.InodeFree < 50_000:
		r.warn("disk", fmt.Sprintf("%s, but only %d inodes", found, s.InodeFree),
			"remove small files, or choose another folder with --data-dir")
	case free < evictShare:
		r.warn("disk", fmt.Sprintf("%s: below %d%% the kubelet removes images and then pods", found, int(evictShare*100)),
			"make room, or lower the bounds with --kubelet-arg eviction-hard=imagefs.available<5%,nodefs.available<5%")
	case s.Free < goodSpace:
		r.warn("disk", found+": little for images", "make room below "+r.DataDir)
	default:
		r.ok("disk", found)
	}
}

func (r *run) overlay() {
	if r.Snapshotter == "native" {
		return
	}
	if !r.Root {
		if !strings.Contains(r.read("proc/filesystems"), "\toverlay\n") {
			r.needsRoot("overlayfs")
			return
		}
		r.ok("overlayfs", "known to the kernel")
		return
	}
	err := r.Probe.Overlay(r.DataDir)
	found := fmt.Sprintf("cannot be mounted in %s (%v)", r.DataDir, err)
	switch {
	case err != nil && r.Snapshotter == "overlayfs":
		r.addFailure("overlayfs", found, "modprobe overlay; leave --snapshotter out, or choose a folder on ext4 or xfs with --data-dir")
		return
	case err != nil:
		r.warn("overlayfs", found+", so image layers are copied for each container", "modprobe overlay, or choose a folder on ext4 or "+
			"xfs with --data-dir")
		return
	}
	r.ok("overlayfs", "works on this disk")
}

// slowSync is the time of a small write above which the store is slow. The store acknowledges nothing before it is on
// the disk.
const slowSync = 30 * time.Millisecond

func (r *run) speed() {
	if !r.Root {
		return
	}
	d, err := r.Probe.SyncTime(r.DataDir)
	if err != nil {
		return // the cause has been reported by another check
	}
	found := fmt.Sprintf("a small write is safe on the disk after %s", d.Round(10*time.Microsecond))
	if d > slowSync {
		r.warn("disk speed", found+"; the API will be slow", "put --data-dir on an SSD or a better card")
		return
	}
	r.ok("disk speed", found)
}

// searchList looks for domains below which every name exists, in the search list that pods inherit.
func (r *run) searchList(ctx context.Context) {
	const name = "search list"
	if r.ResolvConf == "" {
		return
	}
	switch found, err := r.Probe.Wildcards(ctx, r.ResolvConf); {
	case len(found) > 0:
		r.warn(name, WildcardFound(r.ResolvConf, found), WildcardRemedy)
	case err != nil:
		r.warn(name, "could not be checked: "+err.Error(), "make the resolvers in "+r.ResolvConf+" reply, or name others with --resolv-conf")
	default:
		r.ok(name, "outside names are looked up as they are")
	}
}

// WildcardFound describes domains of a search list below which every name exists.
func WildcardFound(file string, domains []string) string {
	return fmt.Sprintf("a made-up name below %s exists, and %s has that in its search list: pods take outside names for names below it",
		strings.Join(domains, " and "), file)
}

// WildcardRemedy says how to avoid that.
const WildcardRemedy = "take the domain out of the search list, or the record * out of the domain, or give --resolv-conf a file without " +
	"the domain; docs/dns.md says more"

// findOtherRuntimes finds other programs that run containers on this machine.
func (r *run) findOtherRuntimes() {
	for _, o := range []struct{ path, what, do string }{
		{"run/k3s/containerd/containerd.sock", "k3s runs or ran here", "stop it, and k3s-killall.sh removes what it left in the network"},
		{"var/snap/microk8s", "MicroK8s is installed", "stop it: microk8s stop"},
		{"var/lib/kubelet/kubeadm-flags.env", "kubeadm has set up a node here", "kubeadm reset"},
	} {
		if r.exists(o.path) {
			r.warn("other clusters", o.what+": two clusters on one machine take each other's ports", o.do)
			return
		}
	}
	r.ok("other clusters", "none")
}
