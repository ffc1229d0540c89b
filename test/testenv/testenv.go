// SPDX-License-Identifier: Apache-2.0

// Package testenv holds what tests of all packages share: saying what a test needs of its machine, and waiting for a
// condition. It is for tests only.
package testenv

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Need is something that a test needs of its machine and that not every machine has.
type Need string

const (
	Root          Need = "root"             // being root, with all its rights: namespaces, mounts
	Embedded      Need = "embedded"         // the embedded programs: make embedded
	LoopDevice    Need = "loop-device"      // losetup, mkfs.ext4, and a kernel that has loop devices
	FUSE          Need = "fuse"             // /dev/fuse: file systems that a process serves
	UserModeLinux Need = "user-mode-linux"  // Debian's package of that name, and what else test/powercut says
	GuestNFTables Need = "guest-nftables"   // nftables for a User-Mode Linux that has IPVS: make guest-test builds it
	GuestNFS      Need = "guest-nfs"        // programs of NFS for a User-Mode Linux, whose kernel has it: make guest-nodes unpacks them
	Crun          Need = "crun"             // the container runtime of Debian's package of that name
	XFS           Need = "xfs"              // mkfs.xfs, of Debian's package xfsprogs
	Systemd       Need = "systemd"          // its program; it need not be what started the machine
	S3Server      Need = "s3-server"        // one that others have written: make s3-test builds it
	KubeProxy     Need = "kube-proxy"       // upstream's program: make proxy-test builds it
	Arm64Guest    Need = "arm64-guest"      // coracle for arm64, and what an emulated machine boots from: make arm64-test builds both
	HTTPClients   Need = "http-clients"     // curl, nghttp, ngtcp2's client and python-websockets of Debian's: make ingress-clients installs them
	Chromium      Need = "chromium"         // Debian's chromium-headless-shell: make console-test installs it
	Node          Need = "node"             // JavaScript's, which Debian's npm brings: packaging/deps.sh console installs it
	Minisign      Need = "minisign"         // the program of Debian's package of that name
	Axe           Need = "axe"              // axe-core, which CORACLE_TEST_AXE names: make console-test fetches it
	Foreign       Need = "foreign-programs" // firewalls, Docker and FRR of Debian's: make foreign-test unpacks them
)

// RequireVar names the environment variable that lists, with commas between, what the machine has for certain: a test
// that misses one of these fails, where it is skipped otherwise. make test sets it.
const RequireVar = "CORACLE_TEST_REQUIRE"

// Missing ends a test that the machine cannot run: skipped, or failed where RequireVar promises the need.
func Missing(t testing.TB, need Need, format string, args ...any) {
	t.Helper()
	why := fmt.Sprintf("needs %s: %s", need, fmt.Sprintf(format, args...))
	if slices.Contains(strings.Split(os.Getenv(RequireVar), ","), string(need)) {
		t.Fatalf("%s; %s=%s says that it is here", why, RequireVar, os.Getenv(RequireVar))
	}
	t.Skip(why)
}

// RequireRoot ends the test unless it runs as root. what says what root is needed for.
func RequireRoot(t testing.TB, what string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, Root, "%s", what)
	}
}

// Eventually calls f until it returns nil, and fails the test with f's last error when that takes longer than within.
func Eventually(t testing.TB, within time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	pause := 5 * time.Millisecond
	for {
		began := time.Now()
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
		time.Sleep(max(pause, min(2*time.Since(began), 2*time.Second))) // between two looks: those that are dear are rarer
		pause = min(pause*3/2, 250*time.Millisecond)
	}
}

// Until is Eventually for a condition that has nothing to say.
func Until(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	Eventually(t, within, what, func() error {
		if !ok() {
			return errors.New("not yet")
		}
		return nil
	})
}
