// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// host has the properties of the machine on which the configuration depends.
type host struct {
	// canLowerOOMScore is CAP_SYS_RESOURCE: without it runc fails to give a container a lower score than this process
	// has.
	canLowerOOMScore bool
	// noAppArmor is true where the kernel has AppArmor but this process cannot load its profiles.
	noAppArmor bool
}

func detectHost() host {
	return host{
		canLowerOOMScore: hasCapability("/proc/self/status", unix.CAP_SYS_RESOURCE),
		noAppArmor:       unix.Access("/sys/kernel/security/apparmor", unix.W_OK) != nil,
	}
}

// hasCapability reads the effective set from a status file of proc(5). It returns true for an unreadable file, since
// most hosts have the capability.
func hasCapability(statusFile string, bit uint) bool {
	f, err := os.Open(statusFile)
	if err != nil {
		return true
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		value, found := strings.CutPrefix(sc.Text(), "CapEff:")
		if !found {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		return err != nil || set&(1<<bit) != 0
	}
	return true
}

// snapshotterFile is the file below Root that records the chosen snapshotter.
const snapshotterFile = "snapshotter"

// chooseSnapshotter resolves "auto". overlayfs does not work on every file system (not on another overlayfs without
// d_type, not on some network and FUSE file systems). native copies every layer, which is slow and large but always
// works. The first choice is kept in later runs: images are unpacked for one snapshotter, and containers use it.
func chooseSnapshotter(want, root string, log *slog.Logger) (string, error) {
	switch want {
	case "overlayfs", "native":
		return want, nil
	case "", "auto":
	default:
		return "", fmt.Errorf("containerd: snapshotter %q is not one of auto, overlayfs, native", want)
	}
	record := filepath.Join(root, snapshotterFile)
	if text, err := os.ReadFile(record); err == nil {
		if name := strings.TrimSpace(string(text)); name == "overlayfs" || name == "native" {
			return name, nil
		}
	}
	dir := filepath.Join(root, "io.containerd.snapshotter.v1.overlayfs")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("containerd: make the snapshot folder: %w", err)
	}
	name := "overlayfs"
	if err := overlayutils.Supported(dir); err != nil {
		log.Warn("containerd: overlayfs does not work here, using the native snapshotter, which copies every layer: "+
			"put the data directory on ext4 or xfs to save space and time", "directory", root, "reason", err)
		name = "native"
	}
	if err := atomicfile.Write(record, []byte(name+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("containerd: record the snapshotter: %w", err)
	}
	return name, nil
}
