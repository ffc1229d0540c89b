//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestSiteLinksFilterEachWay: what one machine hears of another one is what the site's links let through, each way by
// itself.
func TestSiteLinksFilterEachWay(t *testing.T) {
	site := harness.NewSite(t)
	a, b := site.NewMachine(), site.NewMachine()
	const datagrams = 200
	for _, tt := range []struct {
		name        string
		fault       func()
		least, most int // datagrams that arrive from a at b
		wayBack     bool
	}{
		{name: "whole", fault: func() {}, least: datagrams, most: datagrams, wayBack: true},
		{name: "cut one way", fault: func() { site.Cut(a, b) }, wayBack: true},
		{name: "cut the other way", fault: func() { site.Cut(b, a) }, least: datagrams, most: datagrams},
		{name: "split", fault: func() { site.Split(a, b) }},
		{name: "half is lost", fault: func() { site.Lose(a, b, 50) }, least: datagrams / 4, most: datagrams * 3 / 4, wayBack: true},
		// A burst of 64 KiB passes, of frames of a little over 1000 bytes.
		{name: "slow", fault: func() { site.Slow(a, b, 1000) }, least: 30, most: datagrams * 3 / 4, wayBack: true},
		{name: "healed", fault: func() {}, least: datagrams, most: datagrams, wayBack: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			site.Heal()
			send(t, a, b, 1, 1) // so that the link addresses are known
			send(t, b, a, 1, 1)
			tt.fault()
			// A few frames of the kernel's own may come on top.
			if got, sent := send(t, a, b, datagrams, tt.least); got < tt.least || got > tt.most+sent-datagrams+10 {
				t.Errorf("%d of %d datagrams arrived, want %d to %d", got, sent, tt.least, tt.most)
			}
			back := 0
			if tt.wayBack {
				back = datagrams
			}
			if got, sent := send(t, b, a, datagrams, back); got < back || got > back+sent-datagrams+10 {
				t.Errorf("on the way back %d of %d arrived, want %d", got, sent, back)
			}
		})
	}
}

// send sends datagrams of 1000 bytes to a port where no process listens, and returns how many frames arrived of how
// many that were sent. Those that are missing from least are sent again: a processor's backlog that is full drops what
// comes, on a whole link, too. At most half as many are sent again: half of them are lost on none.
func send(t *testing.T, from, to *harness.Machine, count, least int) (got, sent int) {
	t.Helper()
	before := received(t, to)
	for missing := count; ; missing = least - got {
		script := fmt.Sprintf(`text=$(printf %%01000d 0); for ((i = 0; i < %d; i++)); do printf "$text" > /dev/udp/%s/9 || true; done`, missing, to.IP)
		if out, err := from.Run("bash", "-c", script); err != nil && !strings.Contains(err.Error(), "Connection refused") {
			t.Fatalf("%v\n%s", err, out)
		}
		sent += missing
		// What was sent is still on its way for a moment where the kernel has much to do.
		got = received(t, to) - before
		for began := time.Now(); got < least && time.Since(began) < 10*time.Second; got = received(t, to) - before {
			time.Sleep(100 * time.Millisecond) // between two looks
		}
		if got >= least || sent+least-got > max(count*3/2, 10) {
			return got, sent
		}
	}
}

// received counts large frames only: it divides bytes, which leaves out the kernel's own small ones.
func received(t *testing.T, m *harness.Machine) int {
	t.Helper()
	out := testenv.Must(m.Run("cat", "/sys/class/net/eth0/statistics/rx_bytes"))(t)
	n := testenv.Must(strconv.Atoi(strings.TrimSpace(out)))(t)
	return n / (1000 + 8 + 20 + 14)
}

// TestTwoMachines: each machine runs a cluster of its own, and kubectl reaches either from either, as long as the link
// between them is whole. One of them has metrics, local storage and Helm charts, the other one none of them.
func TestTwoMachines(t *testing.T) {
	site := harness.NewSite(t)
	a, b := site.NewMachine(), site.NewMachine()
	servers := []*harness.Server{a.NewServer("--disable-agent"), b.NewServer(append(disableFlags, "--disable-agent")...)}
	for _, s := range servers {
		withChart(t, s)
		s.Start()
	}
	for i, s := range servers {
		s.WaitAPI()
		s.Kubectl("create", "configmap", fmt.Sprintf("of-machine-%d", i+1))
	}
	probe := func(s *harness.Server, from *harness.Machine) error {
		out, err := s.TryKubectlFrom(from, "get", "configmaps", "-n", "default", "-o", "name")
		if want := fmt.Sprintf("of-machine-%d", s.Number); err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("no %s in %s", want, out)
		}
		return err
	}
	all := func() error {
		return errors.Join(probe(servers[0], a), probe(servers[0], b), probe(servers[1], a), probe(servers[1], b))
	}
	harness.Eventually(t, soon, "each answers to each", all)
	site.Cut(a, b)
	testenv.False(t, probe(servers[0], b) == nil || probe(servers[1], a) == nil, "an answer came over a link that is cut")
	harness.Eventually(t, soon, "a server answers to its own machine", func() error { return errors.Join(probe(servers[0], a), probe(servers[1], b)) })
	site.Heal()
	harness.Eventually(t, soon, "the healed link carries again", all)
	partsRun(t, servers[0])
	partsDisabled(t, servers[1])
}

// TestMakePlayLeavesNothing: make play's program runs a command on a cluster and leaves nothing behind.
func TestMakePlayLeavesNothing(t *testing.T) {
	dir, err := os.MkdirTemp("", "play-") // the kernel bounds the path of a socket below it, which holds a test's name otherwise
	testenv.NoError(t, err)
	defer func() { _ = os.RemoveAll(dir) }()
	program, scratch := filepath.Join(dir, "play"), filepath.Join(dir, "scratch")
	if out, err := exec.Command("go", "build", "-tags", "no_btrfs no_zfs no_devmapper grpcnotrace", "-o", program, "../play").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	testenv.NoError(t, os.Mkdir(scratch, 0o755))
	c := exec.CommandContext(context.WithoutCancel(t.Context()), program, "-c", "kubectl get nodes; ctr images ls -q; coracle status; exit 7")
	c.Env = append(os.Environ(), "CORACLE_TEST_DIR="+scratch, "TMPDIR="+scratch)
	var output strings.Builder
	c.Stderr = &output
	out, err := c.Output()
	if err == nil || c.ProcessState.ExitCode() != 7 {
		t.Errorf("exit code %d, want the command's 7: %v\n%s", c.ProcessState.ExitCode(), err, output.String())
	}
	harness.Says(t, string(out), "node-1", "Ready", harness.BoxImage, "API server")
	left, err := os.ReadDir(scratch)
	testenv.False(t, err != nil || len(left) > 0, "left behind in its folder: %v, %v", left, err)
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		groups, err := filepath.Glob(fmt.Sprintf("%scoracle-e2e-%d-*", pattern, c.Process.Pid))
		testenv.False(t, err != nil || len(groups) > 0, "left behind: %v, %v", groups, err)
	}
}
