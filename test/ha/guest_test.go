//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// guestScript is the first process of a machine with a clock of its own. Its disk is at /run/disk; what it shares with
// the test is at /run/shared: the arguments of its coracle, that one's log, token and kubeconfig, and the time that NTP
// sets, in a file that appears when NTP answers. A node needs more than a server: folders that can be written, the rate
// and the place of a processor, which this kernel does not tell, and a pod network, of which there is nothing here but
// the file that says so. The kernel has no nftables.
const guestScript = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir /run/disk /run/shared
mount -t ext4 /dev/ubda /run/disk
mount -t hostfs none /run/shared -o "$SHARED"
hostname "$NAME"
ip link set lo up
ip link set vec0 up
ip address add "$IP/24" dev vec0
export HOME=/run PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run
date -u -s "$CLOCK"
node() {
  busybox insmod /usr/lib/uml/modules/*/kernel/fs/overlayfs/overlay.ko
  mkdir -p /dev/pts /dev/shm /run/lock /run/etc
  mount -t devpts -o ptmxmode=666 devpts /dev/pts
  mount -t tmpfs shm /dev/shm
  cp -a /etc/. /run/etc/
  rm -f /run/etc/resolv.conf
  echo 'nameserver 10.77.0.1' > /run/etc/resolv.conf
  mount --bind /run/etc /etc
  for place in /var/lib /var/log; do
    mkdir -p "/run/disk/places$place"
    mount --bind "/run/disk/places$place" "$place"
  done
  { cat /proc/cpuinfo; echo 'cpu MHz : 1000.000'; } > /run/cpuinfo
  mount --bind /run/cpuinfo /proc/cpuinfo
  if [ ! -e /sys/devices/system/cpu/cpu0/topology ]; then
    mount -t tmpfs cpu /sys/devices/system/cpu
    mkdir -p /sys/devices/system/cpu/cpu0/topology
    for file in online possible present cpu0/topology/core_id cpu0/topology/physical_package_id; do echo 0 > "/sys/devices/system/cpu/$file"; done
  fi
  mkdir -p /etc/cni/net.d
  echo '{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "other"}]}' > /etc/cni/net.d/10-other.conflist
  ip route add default via 10.77.0.1
  mount --make-rshared /
  ulimit -n 65536
}
case $ROLE in
server) set -- server --disable-agent --write-kubeconfig /run/disk/kubeconfig ;;
agent) set -- agent; node ;;
esac
while :; do # as a service manager does
  "$CORACLE" "$@" --data-dir /run/disk/data --node-name "$NAME" --node-ip "$IP" $(cat "/run/shared/args-$NAME")
  echo "coracle has ended with $?"
  sleep 1
done >> "/run/shared/log-$NAME" 2>&1 &
share() {
  [ -e "$1" ] || return 0
  cmp -s "$1" "/run/shared/$2" || { cp "$1" "/run/shared/.$2" && mv "/run/shared/.$2" "/run/shared/$2"; }
}
stepped=
while :; do
  share /run/disk/data/server/token "token-$NAME"
  share /run/disk/data/server/agent-token "agent-token-$NAME"
  share /run/disk/kubeconfig "kubeconfig-$NAME"
  step=
  [ ! -e /run/shared/step ] || step=$(cat /run/shared/step)
  [ "$step" = "$stepped" ] || { date -u -s "$step"; stepped=$step; }
  sleep 1
done
`

// guests are machines with clocks of their own (User-Mode Linux) on a site.
type guests struct {
	t       *testing.T
	site    *harness.Site
	shared  string
	from    *harness.Machine // from which the test asks them
	written []string         // ConfigMaps that were acknowledged
}

// guest is one of them: a server, or an agent with its node.
type guest struct {
	*harness.Guest
	*guests
	clockAt string // port and path of what tells the time there
}

func newGuests(t *testing.T) *guests {
	t.Helper()
	dir := harness.GuestFolder(t)
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "guest.sh"), []byte(guestScript), 0o755))
	site := harness.NewSite(t)
	return &guests{t: t, site: site, shared: dir, from: site.NewMachine()}
}

// add makes a machine with an empty disk that is off. role is its coracle's command and args are what follows.
func (g *guests) add(number int, role, args string) *guest {
	g.t.Helper()
	memory, clockAt := 1000, ":6443/readyz"
	if role == "agent" {
		memory, clockAt = 1200, ":10250/healthz" // the kubelet's
	}
	made := g.site.NewGuest(g.shared, harness.GuestOptions{
		Number: number, Init: filepath.Join(g.shared, "guest.sh"), Disk: 1 << 30, Memory: memory,
		Env: []string{"CORACLE=" + g.from.Coracle(), "SHARED=" + g.shared, "ROLE=" + role},
	})
	testenv.NoError(g.t, os.WriteFile(filepath.Join(g.shared, "args-"+made.Name), []byte(args), 0o600))
	return &guest{Guest: made, guests: g, clockAt: clockAt}
}

// boot switches the machine on, with that time on its clock.
func (x *guest) boot(clock time.Time) {
	x.t.Helper()
	x.Boot(fmt.Sprintf("CLOCK=@%d", clock.Unix()))
}

// reads is a file that the machine shares.
func (x *guest) reads(name string) string { return filepath.Join(x.shared, name+"-"+x.Name) }

// clock is what the machine's clock shows, by the answer of its API server or kubelet.
func (x *guest) clock() (time.Time, error) {
	client := &http.Client{Timeout: askTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // it is asked for the time
		DialContext:       func(ctx context.Context, network, to string) (net.Conn, error) { return x.from.Dial(ctx, network, to) },
	}}
	answer, err := client.Get("https://" + x.IP + x.clockAt)
	if err != nil {
		return time.Time{}, err
	}
	defer answer.Body.Close()
	return http.ParseTime(answer.Header.Get("Date"))
}
