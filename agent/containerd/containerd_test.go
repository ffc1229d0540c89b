// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/version"
	"github.com/sirupsen/logrus"

	"github.com/coracle-k8s/coracle/agent/registries"
	"github.com/coracle-k8s/coracle/agent/runtimes"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFatalEndsOneGoroutine checks that a part of containerd that gives up ends itself and is heard of, and that the
// process goes on.
func TestFatalEndsOneGoroutine(t *testing.T) {
	std := logrus.StandardLogger()
	defer std.ReplaceHooks(std.ReplaceHooks(logrus.LevelHooks{}))
	defer func(w io.Writer, exit func(int)) { std.Out, std.ExitFunc = w, exit }(std.Out, std.ExitFunc)
	std.Out = io.Discard
	trap := setTrap()

	cause := errors.New("no room")
	ended := make(chan bool, 1)
	give := func(message string) {
		go func() {
			after := false
			defer func() { ended <- after }()
			logrus.WithError(cause).Fatal(message)
			after = true
		}()
		testenv.False(t, <-ended, "the goroutine went on after Fatal")
	}
	give("Failed to run CRI service")
	give("and then another")
	err := <-trap.failure
	testenv.False(t, !errors.Is(err, cause) || !strings.Contains(err.Error(), "Failed to run CRI service"), "heard %v", err)
	trap.expectEnd()
	give("serve failure")
	select {
	case err := <-trap.failure:
		t.Errorf("heard %v of what was meant to end", err)
	default:
	}
}

func TestSnapshotterChoiceIsRecordedAndKept(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	root := t.TempDir()
	for _, name := range []string{"native", "overlayfs"} {
		if got, err := chooseSnapshotter(name, root, log); got != name || err != nil {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	testenv.WantError(t, testenv.Err(chooseSnapshotter("zfs", root, log)), "zfs")
	testenv.NoError(t, os.WriteFile(filepath.Join(root, snapshotterFile), []byte("native\n"), 0o600))
	if got, err := chooseSnapshotter("auto", root, log); got != "native" || err != nil {
		t.Errorf("an earlier run's choice is not kept: %s, %v", got, err)
	}
	testenv.RequireRoot(t, "it tries overlayfs")
	other := t.TempDir()
	got, err := chooseSnapshotter("auto", other, log)
	testenv.False(t, err != nil || (got != "overlayfs" && got != "native"), "auto: %s, %v", got, err)
	if text, _ := os.ReadFile(filepath.Join(other, snapshotterFile)); string(text) != got+"\n" {
		t.Errorf("the choice was not recorded: %q", text)
	}
}

func TestEffectiveCapabilityIsReadFromProcStatus(t *testing.T) {
	file := filepath.Join(t.TempDir(), "status")
	testenv.NoError(t, os.WriteFile(file, []byte("Name:\tx\nCapEff:\t000001fffeffffff\n"), 0o600))
	testenv.False(t, hasCapability(file, 24), "CAP_SYS_RESOURCE is bit 24, which is not set")
	testenv.True(t, hasCapability(file, 21), "CAP_SYS_ADMIN is bit 21, which is set")
	testenv.True(t, hasCapability(filepath.Join(t.TempDir(), "missing"), 24), "without the file the usual case is assumed")
}

func TestContainerdConfigurationHasItsOptions(t *testing.T) {
	o := Options{Root: "/r", State: "/s", BinDir: "/b", CNIBinDir: "/b", CNIConfDir: "/c", RegistryDir: "/reg", Runtime: config.Runtime{PauseImage: "p:1"},
		Runtimes:      []runtimes.Runtime{{Name: "crun", Program: "/usr/bin/crun"}, {Name: "kata", Program: "/k/containerd-shim-kata-v2", OwnShim: true}},
		RegistryAuths: map[string]registries.Auth{"a.example.org": {Username: "u", Password: "p"}}}
	c := serverConfig(o, "native", host{canLowerOOMScore: false})
	at := func(path ...string) any {
		var v any = c.Plugins
		for _, p := range path {
			m, ok := v.(map[string]any)
			testenv.Require(t, ok, "%v: no map at %s", path, p)
			v = m[p]
		}
		return v
	}
	const images, runtime = "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"
	for name, ok := range map[string]bool{
		"socket":          at("io.containerd.server.v1.grpc", "address") == "/s/containerd.sock",
		"streams":         at("io.containerd.grpc.v1.cri", "stream_server_address") == clusterconfig.Loopback.String(),
		"snapshotter":     at(images, "snapshotter") == "native",
		"pause image":     at(images, "pinned_images", "sandbox") == "p:1",
		"registries":      at(images, "registry", "config_path") == "/reg",
		"credentials":     at(images, "registry", "configs", "a.example.org", "auth", "username") == "u",
		"oom score":       at(runtime, "restrict_oom_score_adj") == true,
		"runc":            at(runtime, "containerd", "runtimes", "runc", "options", "BinaryName") == "/b/runc",
		"shim":            at(runtime, "containerd", "runtimes", "runc", "runtime_path") == "/b/containerd-shim-runc-v2",
		"default":         at(runtime, "containerd", "default_runtime_name") == "runc",
		"crun":            at(runtime, "containerd", "runtimes", "crun", "options", "BinaryName") == "/usr/bin/crun",
		"crun's records":  at(runtime, "containerd", "runtimes", "crun", "options", "Root") == "/s/crun",
		"crun's shim":     at(runtime, "containerd", "runtimes", "crun", "runtime_path") == "/b/containerd-shim-runc-v2",
		"crun's type":     at(runtime, "containerd", "runtimes", "crun", "runtime_type") == "io.containerd.runc.v2",
		"kata's type":     at(runtime, "containerd", "runtimes", "kata", "runtime_type") == "io.containerd.kata.v2",
		"kata's shim":     at(runtime, "containerd", "runtimes", "kata", "runtime_path") == "/k/containerd-shim-kata-v2",
		"cri is required": len(c.RequiredPlugins) == 1,
	} {
		testenv.True(t, ok, "wrong: %s", name)
	}
}

func TestContainerdReleaseIsKnown(t *testing.T) {
	if got := releaseOf(version.Version); strings.Contains(got, "unknown") || !strings.HasPrefix(got, "2.") {
		t.Errorf("nodes would show containerd://%s", got)
	}
	testenv.Equal(t, releaseOf("2.9.0+vendor.1"), "2.9.0+vendor.1", "")
}

func TestLongShimSocketDirIsShortened(t *testing.T) {
	testenv.Equal(t, shimSocketDir("/run/coracle/containerd"), "/run/coracle/containerd/s", "")
	long := "/" + strings.Repeat("long/", 20)
	if got := shimSocketDir(long); len(got) > maxSocketDir || got != shimSocketDir(long) || got == shimSocketDir(long+"x") {
		t.Error(got)
	}
}
