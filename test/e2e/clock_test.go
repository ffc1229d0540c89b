//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

// guestScript is the first process of a machine with a clock of its own: guest.sh CORACLE CLOCK STEP. The machine's
// disk is at /run/disk. A fresh one gets CLOCK for the time; STEP, if it is not empty, is the time that NTP sets when
// the server is ready.
const guestScript = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir /run/disk
mount -t ext4 /dev/ubda /run/disk
hostname guest
ip link set lo up
ip address add 10.9.9.9/24 dev lo
export HOME=/run PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run CORACLE_DATA_DIR=/run/disk/data
date -u -s "$CLOCK"
answers() {
  began=$(cut -d. -f1 /proc/uptime)
  until [ $(($(cut -d. -f1 /proc/uptime) - began)) -gt 900 ]; do
    "$CORACLE" kubectl --kubeconfig /run/disk/kubeconfig create configmap "$1" && { echo "ANSWERS $1 $(date -u +%Y) after $(($(cut -d. -f1 /proc/uptime) - began)) s"; return; }
    sleep 2
  done
  echo "SILENT $1"
}
"$CORACLE" server --disable-agent --node-name n --node-ip 10.9.9.9 --write-kubeconfig /run/disk/kubeconfig 2>&1 &
answers "after-$BOOT"
[ -z "$STEP" ] || { date -u -s "$STEP"; answers "stepped-$BOOT"; }
"$CORACLE" kubectl --kubeconfig /run/disk/kubeconfig get configmaps -o name
sync
poweroff -f
`

// clockless boots a machine of User-Mode Linux, whose clock is its own, with a disk, and returns what it said. The
// power goes at the end, without anything being stopped.
func clockless(t *testing.T, dir string, env ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 35*time.Minute)
	defer cancel()
	var out bytes.Buffer
	c, err := uml.Start(ctx, uml.StartOptions{
		Memory: 1500, Init: filepath.Join(dir, "guest.sh"), Dir: dir, Args: append(env, "ubd0="+filepath.Join(dir, "disk")), Console: &out,
	})
	testenv.NoError(t, err)
	err = c.Wait()
	if ctx.Err() != nil {
		t.Fatalf("the machine did not come to its end: %v\n%s", err, &out)
	}
	return out.String()
}

// TestMachineWithoutClockBattery: machines without a battery. The first start is in 1970: the clock is set to when the
// program was built, before any certificate is made, and NTP sets it right two years later, while the server runs. Then
// the power goes, and the next start is in 1970 again: the clock is set to what the files say.
func TestMachineWithoutClockBattery(t *testing.T) {
	t.Parallel() // it is slow, and the others here wait
	uml.Require(t, "mkfs.ext4")
	dir, err := os.MkdirTemp("/var/tmp", "coracle-clock-") // the guest has a /run of its own, and sees the host's files elsewhere
	testenv.NoError(t, err)
	t.Cleanup(func() { testenv.Check(t, os.RemoveAll(dir)) })
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "guest.sh"), []byte(guestScript), 0o755))
	testenv.NoError(t, uml.MakeDisk(filepath.Join(dir, "disk"), 1<<30))
	reports := regexp.MustCompile(`ANSWERS .*`)
	coracle := (&harness.Machine{T: t}).Coracle()
	later := time.Now().UTC().AddDate(2, 0, 0)

	out := clockless(t, dir, "CORACLE="+coracle, "CLOCK=@100", "BOOT=1", "STEP="+later.Format("2006-01-02T15:04:05"))
	harness.Says(t, out, "this machine's clock was behind", `1970-01-01`, "the program was built then", "ANSWERS stepped-1 "+later.Format("2006"))
	t.Log(reports.FindAllString(out, -1))
	testenv.True(t, regexp.MustCompile(`ANSWERS after-1 20[2-9]\d`).MatchString(out), "the first start is not in the program's time:\n%s", out)
	out = clockless(t, dir, "CORACLE="+coracle, "CLOCK=@100", "BOOT=2")
	t.Log(reports.FindAllString(out, -1))
	harness.Says(t, out, "this machine's clock was behind", "was written then", "ANSWERS after-2 "+later.Format("2006"), "configmap/after-1", "configmap/stepped-1")
}
