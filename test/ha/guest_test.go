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
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/testenv"
	"github.com/coracle-k8s/coracle/test/harness"
)

// guestScript is the first process of a machine with a clock of its own. Its disk is at /run/disk; what it shares with the test is at /run/shared: the arguments of
// its server, that one's log, token and kubeconfig, and the time that NTP sets, in a file that appears when NTP answers.
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
while :; do # as a service manager does
  "$CORACLE" server --disable-agent --data-dir /run/disk/data --node-name "$NAME" --node-ip "$IP" --write-kubeconfig /run/disk/kubeconfig \
    $(cat "/run/shared/args-$NAME")
  echo "the server has ended with $?"
  sleep 1
done >> "/run/shared/log-$NAME" 2>&1 &
share() {
  [ -e "$1" ] || return 0
  cmp -s "$1" "/run/shared/$2" || { cp "$1" "/run/shared/.$2" && mv "/run/shared/.$2" "/run/shared/$2"; }
}
stepped=
while :; do
  share /run/disk/data/server/token "token-$NAME"
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

// guest is one of them: a server.
type guest struct {
	*guests
	name, ip string
	dir      string
	power    context.CancelFunc // takes it; nil while it is off
	off      chan struct{}      // closed when nothing is left of it
}

func newGuests(t *testing.T) *guests {
	t.Helper()
	if _, err := exec.LookPath("linux.uml"); err != nil {
		testenv.Missing(t, testenv.UserModeLinux, "linux.uml is not installed: packaging/deps.sh test installs it")
	}
	dir, err := os.MkdirTemp("/var/tmp", "coracle-clocks-") // the guests have a /run of their own, and see the host's files elsewhere
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("CORACLE_TEST_KEEP") != "" {
			t.Logf("kept %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "guest.sh"), []byte(guestScript), 0o755); err != nil {
		t.Fatal(err)
	}
	site := harness.NewSite(t)
	return &guests{t: t, site: site, shared: dir, from: site.NewMachine()}
}

// add makes a machine with an empty disk that is off. args are its server's.
func (g *guests) add(number int, args string) *guest {
	g.t.Helper()
	x := &guest{guests: g, name: fmt.Sprintf("guest-%d", number), ip: fmt.Sprintf("10.77.0.%d", 20+number)}
	x.dir = filepath.Join(g.shared, x.name)
	disk := filepath.Join(x.dir, "disk")
	tap := "tap" + x.name
	for _, do := range []func() error{
		func() error { return os.Mkdir(x.dir, 0o755) },
		func() error { return os.WriteFile(filepath.Join(g.shared, "args-"+x.name), []byte(args), 0o600) },
		func() error { return os.WriteFile(disk, nil, 0o600) },
		func() error { return os.Truncate(disk, 1<<30) },
		func() error { return run(exec.CommandContext(g.t.Context(), "mkfs.ext4", "-q", disk)) },
		func() error {
			return run(g.site.Command(g.t.Context(), "ip", "tuntap", "add", "dev", tap, "mode", "tap"))
		},
		func() error {
			return run(g.site.Command(g.t.Context(), "ip", "link", "set", tap, "master", "site", "up"))
		},
	} {
		if err := do(); err != nil {
			g.t.Fatal(err)
		}
	}
	g.t.Cleanup(x.powerOff)
	return x
}

func run(c *exec.Cmd) error {
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", c, err, out)
	}
	return nil
}

// boot switches the machine on, with that time on its clock.
func (x *guest) boot(clock time.Time) {
	x.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	kernel := x.site.Command(ctx, "linux.uml",
		"mem=1000M", "rootfstype=hostfs", "ro", "hostfs=/", "init="+filepath.Join(x.shared, "guest.sh"), "ubd0="+filepath.Join(x.dir, "disk"),
		"con=null", "con0=null,fd:1", "panic=-1", fmt.Sprintf("vec0:transport=tap,ifname=tap%s,mac=02:00:00:00:01:%02x", x.name, x.name[len(x.name)-1]),
		"CORACLE="+x.from.Coracle(), "SHARED="+x.shared, "NAME="+x.name, "IP="+x.ip, fmt.Sprintf("CLOCK=@%d", clock.Unix()))
	console, err := os.OpenFile(filepath.Join(x.dir, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		x.t.Fatal(err)
	}
	defer console.Close()
	// The kernel is not the first process of a pid namespace, which could not abort; that one ends, and all of its processes with it.
	c := exec.CommandContext(ctx, "sh", append([]string{"-c", `"$@"; exit $?`, "sh"}, kernel.Args...)...)
	c.Env = append(os.Environ(), "TMPDIR="+x.dir, "HOME="+x.dir)
	c.Stdout, c.Stderr = console, console
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: unix.CLONE_NEWPID}
	if err := c.Start(); err != nil {
		x.t.Fatal(err)
	}
	off := make(chan struct{})
	go func() { _ = c.Wait(); close(off) }()
	x.power, x.off = cancel, off
}

// powerOff takes the machine's power. What it had not synced is lost.
func (x *guest) powerOff() {
	if x.power == nil {
		return
	}
	x.power()
	<-x.off
	x.power = nil
}

// running fails the test when the machine went down by itself.
func (x *guest) running() {
	x.t.Helper()
	select {
	case <-x.off:
		console, _ := os.ReadFile(filepath.Join(x.dir, "console"))
		x.t.Fatalf("%s went down by itself:\n%s", x.name, console[max(0, len(console)-4000):])
	default:
	}
}

// reads is a file that the machine shares.
func (x *guest) reads(name string) string { return filepath.Join(x.shared, name+"-"+x.name) }

// clock is what the machine's clock shows, by its API server's answer.
func (x *guest) clock() (time.Time, error) {
	client := &http.Client{Timeout: askTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // it is asked for the time
		DialContext:       func(ctx context.Context, network, to string) (net.Conn, error) { return x.from.Dial(ctx, network, to) },
	}}
	answer, err := client.Get("https://" + x.ip + ":6443/readyz")
	if err != nil {
		return time.Time{}, err
	}
	defer answer.Body.Close()
	return http.ParseTime(answer.Header.Get("Date"))
}
