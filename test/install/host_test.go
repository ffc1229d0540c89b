//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// host is a machine with a release to install from.
type host struct {
	*harness.Machine
	t       *testing.T
	release string   // folder with the binary, sha256sums.txt and install.sh
	service string   // which service manager the installer has to use
	inside  []string // what commands go through, where the machine has a namespace of its own inside
	nft     string
}

func newHost(t *testing.T) *host {
	t.Helper()
	return newHostOn(t, harness.NewSite(t))
}

// newHostOn is for a site with several machines.
func newHostOn(t *testing.T, site *harness.Site) *host {
	t.Helper()
	h := &host{Machine: site.NewMachine(), t: t, service: "none"}
	h.Env = append(h.Env, "PATH=/usr/local/bin:/usr/bin:/bin")
	h.release = filepath.Join(h.Dir, "release")
	h.writeRelease()
	tools := testenv.Must(embedded.Unpack(filepath.Join(h.Dir, "tools")))(t)
	t.Cleanup(func() { testenv.Check(t, tools.Close()) })
	h.nft = tools.File("nft")
	return h
}

// writeRelease lays out what a user downloads.
func (h *host) writeRelease() {
	h.t.Helper()
	name := "coracle-linux-" + runtime.GOARCH
	binary := filepath.Join(h.release, name)
	testenv.NoError(h.t, os.MkdirAll(h.release, 0o755))
	h.copy(h.Coracle(), binary, 0o755)
	h.copy("../../install.sh", filepath.Join(h.release, "install.sh"), 0o755)
	h.write(filepath.Join(h.release, "sha256sums.txt"), hash(h.t, binary)+"  "+name+"\n")
}

func hash(t *testing.T, path string) string {
	t.Helper()
	f := testenv.Must(os.Open(path))(t)
	defer f.Close()
	sum := sha256.New()
	testenv.Must(io.Copy(sum, f))(t)
	return hex.EncodeToString(sum.Sum(nil))
}

func (h *host) copy(from, to string, mode os.FileMode) {
	h.t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, mode)
	}
	testenv.NoError(h.t, err)
}

func (h *host) write(path, text string) {
	h.t.Helper()
	testenv.NoError(h.t, os.WriteFile(path, []byte(text), 0o644))
}

// run is Machine.Run where the host's processes are.
func (h *host) run(name string, args ...string) (string, error) {
	argv := append(slices.Clone(h.inside), append([]string{name}, args...)...)
	return h.Run(argv[0], argv[1:]...)
}

func (h *host) must(name string, args ...string) string {
	h.t.Helper()
	out, err := h.run(name, args...)
	testenv.NoError(h.t, err, "%s", out)
	return strings.TrimSpace(out)
}

// kubectl is must for the cluster's kubectl, which gives up where a server is busy.
func (h *host) kubectl(args ...string) (out string) {
	h.t.Helper()
	testenv.NoError(h.t, harness.Reaching(func() (err error) {
		out, err = h.run("kubectl", args...)
		return err
	}))
	return strings.TrimSpace(out)
}

// install runs the release's installer and returns everything it said.
func (h *host) install(env []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	argv := append(slices.Clone(h.inside), append([]string{filepath.Join(h.release, "install.sh")}, args...)...)
	c := h.Command(ctx, argv[0], argv[1:]...)
	c.Env = append(append(c.Env, "INSTALL_CORACLE_SERVICE="+h.service, "INSTALL_CORACLE_SYMLINK=force"), env...)
	c.WaitDelay = 5 * time.Second
	out, err := c.CombinedOutput()
	return string(out), err
}

func (h *host) mustInstall(env []string, args ...string) string {
	h.t.Helper()
	out, err := h.install(env, args...)
	if err != nil {
		h.t.Fatalf("install.sh: %v\n%s\n%s", err, out, h.log())
	}
	h.t.Logf("install.sh %s:\n%s", strings.Join(args, " "), out)
	return out
}

// log is the end of the service's log.
func (h *host) log() string {
	out, err := h.run("sh", "-c", "tail -n 60 /var/log/coracle.log /var/log/unit.log; true")
	if err != nil {
		return err.Error()
	}
	return out
}

// state is what a test compares: kinds of things, and which of them the machine has.
type state map[string][]string

// questions print one thing to a line. Programs that look are not among what they see, nor are link-local addresses,
// and routes for multicast, which the kernel adds in its own time.
var questions = map[string]string{
	"processes": `for p in /proc/[0-9]*; do [ "$p" = /proc/$$ ] || { [ -e $p/exe ] && readlink $p/exe; }; done 2>/dev/null | grep -v -e /nsenter -e /readlink -e /dash -e /grep -e /sort || true`,
	"mounts":    `awk '{print $2, $3}' /proc/self/mounts`,
	"devices":   `ls /sys/class/net`,
	"addresses": `ip -o addr show | awk '{print $2, $4}' | grep -v fe80 || true`,
	"routes":    `(ip route show table all; ip -6 route show table all) | grep -v -e fe80 -e ff00:: || true`,
	"rules":     `ip rule; ip -6 rule`,
	"netns":     `ls /run/netns`,
	"cgroups":   `find /sys/fs/cgroup -mindepth 1 -type d`,
	"files":     `find /etc /usr/local/bin /var/lib /var/log /run /opt -xdev 2>/dev/null; find /root -maxdepth 1`,
	"sockets":   `awk 'NR > 1 && $8 {print $8}' /proc/net/unix`,
	"ports":     `awk 'FNR > 1 && $4 == "0A" {print $2}' /proc/net/tcp /proc/net/tcp6`,
}

func (h *host) state() state {
	h.t.Helper()
	s := state{"packet filter": lines(h.must(h.nft, "list", "ruleset"))}
	for kind, script := range questions {
		s[kind] = lines(h.must("sh", "-c", script))
	}
	return s
}

func lines(s string) []string {
	out := strings.Split(strings.TrimSpace(s), "\n")
	slices.Sort(out)
	return out
}

// difference says what came and what went, kind by kind.
func (s state) difference(after state) string {
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(s)) {
		for _, x := range missingFrom(s[kind], after[kind]) {
			b.WriteString(kind + ": left behind: " + x + "\n")
		}
		for _, x := range missingFrom(after[kind], s[kind]) {
			b.WriteString(kind + ": removed: " + x + "\n")
		}
	}
	return b.String()
}

// missingFrom lists what is in the second of two sorted lists and not in the first.
func missingFrom(first, second []string) (out []string) {
	for _, x := range second {
		if _, found := slices.BinarySearch(first, x); !found {
			out = append(out, x)
		}
	}
	return out
}

// awaitState waits until the machine is as it was; the kernel takes some things away a moment later.
func (h *host) awaitState(want state) {
	h.t.Helper()
	harness.Eventually(h.t, 3*time.Minute, "the machine is as before", func() error {
		if d := want.difference(h.state()); d != "" {
			return errors.New(d)
		}
		return nil
	})
}

// exitCode is the code that a command ended with.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}
