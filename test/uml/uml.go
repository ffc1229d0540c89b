// SPDX-License-Identifier: Apache-2.0

// Package uml runs a test of the calling package once more inside a second kernel, a User-Mode Linux, which has what
// the machine's kernel may lack: IPVS, say. The guest sees the machine's files, read-only, and has processes, a network
// and /run of its own. It is for tests only.
//
// A package's TestMain returns Main's result, and its test begins with
//
//	if !uml.Inside() {
//		uml.Run(t, uml.Options{…})
//		return
//	}
package uml

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	packaged   = "linux.uml"
	modulesDir = "/usr/lib/uml/modules"
	// verdict begins the line by which a guest says that its test is over, before it says how.
	verdict = "guest: over: "
)

// WithNFTablesVar names the folder that packaging/guest-nftables.sh made.
const WithNFTablesVar = "CORACLE_GUEST_NFTABLES"

// WithNFTables are the options of a guest that has both nftables and IPVS; Debian's kernel has no nftables for IP.
// Where there is none the test ends.
func WithNFTables(t testing.TB, within time.Duration) Options {
	t.Helper()
	folder := os.Getenv(WithNFTablesVar)
	if folder == "" {
		testenv.Missing(t, testenv.GuestNFTables, "%s names none (make guest-test)", WithNFTablesVar)
	}
	if kernel := filepath.Join(folder, "linux"); exists(kernel) {
		return Options{Kernel: kernel, Within: within}
	}
	return Options{Modules: besideNFTables, Own: []string{filepath.Join(folder, "order")}, Within: within}
}

// WithWireGuard are the options of a guest that has WireGuard besides nftables, and what a pod network needs beside
// both: bridges, and tun devices for an end of the tunnel that is not the kernel's. Where they are not to be had the
// test ends.
func WithWireGuard(t testing.TB, within time.Duration) Options {
	t.Helper()
	o := WithNFTables(t, within)
	if o.Kernel != "" {
		t.Skipf("Debian has no source of its User-Mode Linux any more, and %s has no WireGuard", o.Kernel)
	}
	o.Modules = slices.Concat(o.Modules, []string{"bridge", "tun", "udp_tunnel", "ip6_udp_tunnel", "libchacha", "libpoly1305"})
	o.Own = append(o.Own, filepath.Join(filepath.Dir(o.Own[0]), "order.wireguard"))
	return o
}

// besideNFTables are those of the package's modules that go with the ones of packaging/guest-nftables.sh.
var besideNFTables = []string{
	"ip_vs", "ip_vs_rr", "dummy", "veth", "ipv6", "nf_conntrack_netlink", "nfnetlink", "nf_reject_ipv4", "nf_reject_ipv6",
	"sctp", "hmac", // which signs the cookies of SCTP
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// Options say what a guest needs.
type Options struct {
	// Kernel is a program; empty is that of Debian's package user-mode-linux.
	Kernel string
	// Modules are loaded, each with those that it needs; of the package's kernel.
	Modules []string
	// Own are files with the names of further modules beside them, in the order in which they have to be loaded, after
	// those.
	Own []string
	// Within is how long it may take.
	Within time.Duration
}

// modules is the folder of the package's modules.
func modules() (string, error) {
	found, err := filepath.Glob(modulesDir + "/*/modules.dep")
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("the package user-mode-linux has modules of %d kernels, those of one are needed", len(found))
	}
	return filepath.Dir(found[0]), nil
}

// Run runs the calling test in a guest, shows what it says, and ends as it ends, with the same parts. Where the
// package's kernel is not to be had the test ends.
func Run(t *testing.T, o Options) {
	t.Helper()
	if o.Kernel == "" {
		Require(t)
	}
	if testenv.RaceDetector {
		testenv.Missing(t, testenv.UserModeLinux, "with the race detector the guest's first process is many times slower and larger")
	}
	args, err := o.arguments(t.Name())
	testenv.NoError(t, err)
	self, err := os.Executable()
	testenv.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), o.Within)
	defer cancel()
	var out bytes.Buffer
	runtime.LockOSThread() // the death signal follows the thread
	defer runtime.UnlockOSThread()
	guest, err := Start(ctx, StartOptions{Kernel: o.Kernel, Memory: 512, Init: self, Dir: workDir(t), Args: args, Console: &out})
	testenv.NoError(t, err)
	err = guest.Wait()
	output, over := judge(out.Bytes())
	t.Logf("the guest says:\n%s", output)
	switch {
	case ctx.Err() != nil:
		t.Fatalf("the guest was not done within %v", o.Within)
	case over == "":
		t.Fatalf("the guest ended without a word (%v)", err)
	case over != "0":
		t.Fatalf("it failed in the guest: %s\n%s", over, complaints(output))
	}
	repeat(t, output)
}

// judge splits what came from the console: what the test said, and how it ended.
func judge(console []byte) (output, over string) {
	var b strings.Builder
	for s := bufio.NewScanner(bytes.NewReader(console)); s.Scan(); {
		line := strings.TrimRight(s.Text(), "\r")
		if _, how, ok := strings.Cut(line, verdict); ok {
			over = how
			continue
		}
		b.WriteString(line + "\n")
	}
	return b.String(), over
}

// complaints are the lines of what a test said that say what failed. They are repeated last: of a long output often
// only the end is kept.
func complaints(output string) string {
	var b strings.Builder
	for line := range strings.Lines(output) {
		if strings.Contains(line, "_test.go:") || strings.Contains(line, "--- FAIL") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// arguments are the parameters of the kernel.
func (o Options) arguments(test string) ([]string, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	args := []string{"quiet", testVar + "=" + test, folderVar + "=" + cwd, "PATH=" + os.Getenv("PATH")}
	if len(o.Modules) > 0 {
		dir, err := modules()
		if err != nil {
			return nil, err
		}
		args = append(args, modulesVar+"="+dir+":"+strings.Join(o.Modules, ","))
	}
	if len(o.Own) > 0 {
		args = append(args, ownVar+"="+strings.Join(o.Own, ":"))
	}
	if promised := os.Getenv(testenv.RequireVar); promised != "" {
		args = append(args, testenv.RequireVar+"="+promised)
	}
	return args, nil
}

// workDir is a folder of the guest's, which removes files of its own when it ends.
func workDir(t *testing.T) string {
	dir := testenv.Must(os.MkdirTemp("", "guest"))(t)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	return dir
}
