// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/server/storefiles"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) {
	// Upstream's components say hundreds of lines; CORACLE_TEST_VERBOSE=1 shows them.
	if os.Getenv("CORACLE_TEST_VERBOSE") == "" {
		klog.SetSlogLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))
	}
	klog.OsExit = func(code int) {
		panic(fmt.Sprintf("a part of upstream ended the process with %d; CORACLE_TEST_VERBOSE=1 shows why", code))
	}
	if dir := os.Getenv(killedDir); dir != "" {
		if err := runKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// options are of a server below dir on a port of its own.
func options(dir string) Options {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if os.Getenv("CORACLE_TEST_VERBOSE") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	address := netip.MustParseAddr("192.0.2.1")
	return Options{
		Server: config.Server{
			Paths:            config.NewPaths(dir, ""),
			Node:             config.Node{Name: "boat", IPs: []netip.Addr{address}},
			DisableAgent:     true,
			BindAddress:      netip.MustParseAddr("127.0.0.1"),
			AdvertiseAddress: address,
			Cluster: clusterconfig.Settings{
				PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
				DNS: netip.AddrFrom4([4]byte{10, 43, 0, 10}), Domain: clusterconfig.DefaultDomain,
			},
			ServerSettings: clusterconfig.ServerSettings{NodePortRange: "30000-32767", EncryptResources: []string{"secrets"}},
			Kubeconfig:     config.Kubeconfig{Path: filepath.Join(dir, "admin.kubeconfig"), Mode: 0o600},
		},
		Version: "v0.0.0-test",
		Small:   true,
		Logger:  log,
	}
}

// snapshot lists every file below dir with its size.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	testenv.NoError(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() && info.Name() != datadir.LockFile {
			out.WriteString(path + " " + info.ModTime().String() + "\n")
		}
		return err
	}))
	return out.String()
}

// refused starts a server that must not start, and checks that it says so and changed nothing.
func refused(t *testing.T, o Options, want ...string) {
	t.Helper()
	before := snapshot(t, o.DataDir)
	s, err := New(t.Context(), o)
	if err == nil {
		_ = s.Close() // the test has failed already
		t.Fatalf("it started; want words with %q", want)
	}
	for _, w := range append(want, "Nothing was changed") {
		testenv.True(t, strings.Contains(err.Error(), w), "the message lacks %q: %v", w, err)
	}
	testenv.Equal(t, snapshot(t, o.DataDir), before, "files changed:\n%s\nnow:", before)
}

func TestServerRefusesWrongDirectoryPortOrAddress(t *testing.T) {
	o := options(t.TempDir())
	o.HTTPSPort = testenv.Port(t)
	s := testenv.Must(New(t.Context(), o))(t)
	t.Run("second server on the directory", func(t *testing.T) { refused(t, o, "another coracle server", o.DataDir) })
	t.Run("port taken", func(t *testing.T) {
		other := options(t.TempDir())
		other.HTTPSPort = o.HTTPSPort
		refused(t, other, "is taken", "--https-listen-port")
	})
	testenv.NoError(t, s.data.RecordVersion())
	testenv.NoError(t, s.Close())
	t.Run("address of another machine", func(t *testing.T) {
		o := o
		o.BindAddress = netip.MustParseAddr("203.0.113.7")
		refused(t, o, "203.0.113.7", "--bind-address")
	})
	identity := filepath.Join(o.ServerDir, datadir.IdentityFile)
	good := testenv.Must(os.ReadFile(identity))(t)
	for name, c := range map[string]struct{ content, want string }{
		"newer version":    {`{"format": 99, "version": "v7.0.0", "serverID": "x"}`, "newer coracle: v7.0.0"},
		"damaged identity": {string(good[:len(good)/2]), "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			testenv.NoError(t, os.WriteFile(identity, []byte(c.content), 0o600))
			refused(t, o, c.want)
		})
	}
	testenv.NoError(t, os.WriteFile(identity, good, 0o600))
	again, err := New(t.Context(), o)
	testenv.NoError(t, err, "after all that it should start")
	testenv.Equal(t, again.data.ServerID(), s.data.ServerID(), "it took another identity:")
	testenv.NoError(t, again.Close())
	t.Run("keys lost", func(t *testing.T) {
		testenv.NoError(t, os.MkdirAll(filepath.Join(o.StoreDir, "data"), 0o700))
		testenv.NoError(t, os.Remove(filepath.Join(o.CredDir, "encryption-config.yaml")))
		refused(t, o, "encryption-config.yaml is missing", "backup")
	})
}

func TestBadArgumentsAreRefusedBeforeAnything(t *testing.T) {
	o := options(filepath.Join(t.TempDir(), "data"))
	o.SchedulerArgs = []string{"no-such-flag=1"}
	testenv.WantError(t, testenv.Err(New(t.Context(), o)), "no-such-flag")
	if _, err := os.Stat(o.DataDir); !os.IsNotExist(err) {
		t.Errorf("the data directory was made: %v", err)
	}
}

// TestManifestsFollowTheCluster: a server ignores its folder of manifests where the cluster's settings say so.
func TestManifestsFollowTheCluster(t *testing.T) {
	o := options(t.TempDir())
	o.setDefaults()
	testenv.Equal(t, o.ManifestsDir, filepath.Join(o.DataDir, "manifests"), "")
	o.Cluster.Disabled = clusterconfig.Disabled{clusterconfig.PartManifests}
	o.setDefaults()
	testenv.Equal(t, o.ManifestsDir, "", "")
}

// TestStartRemovesInterruptedRestore: a start removes what an interrupted restore left, and the note that a reset was
// done.
func TestStartRemovesInterruptedRestore(t *testing.T) {
	o := options(t.TempDir())
	half := testenv.Must(storefiles.Begin(o.ServerDir, "20250101T000000Z"))(t)
	testenv.NoError(t, errors.Join(os.MkdirAll(half, 0o700), os.MkdirAll(o.ServerDir, 0o700), datadir.NoteReset(o.ServerDir, "it")))
	s := testenv.Must(New(t.Context(), o))(t)
	testenv.Check(t, s.Close())
	testenv.Equal(t, testenv.Must(datadir.WasReset(o.ServerDir))(t), "", "")
	for _, path := range []string{half, half + ".unfinished"} {
		testenv.Fails(t, testenv.Err(os.Stat(path)), "%s is left", path)
	}
}

// TestServerWithOtherKeysIsNoMember: a server whose encryption keys are not this one's is no member.
func TestServerWithOtherKeysIsNoMember(t *testing.T) {
	o := options(t.TempDir())
	s := testenv.Must(New(t.Context(), o))(t)
	defer func() { testenv.Check(t, s.Close()) }()
	for _, share := range []string{"another", ""} {
		testenv.WantError(t, testenv.Err(s.admitMember(share)), "joins again")
	}
	release, err := s.admitMember(secrets.KeysShare(o.CredDir, o.Logger))
	testenv.NoError(t, err)
	release()
	if len(secrets.KeysShare(o.CredDir, o.Logger)) < 32 {
		t.Errorf("it shares %q", secrets.KeysShare(o.CredDir, o.Logger))
	}
}

func TestAgentCredentialsAreWritten(t *testing.T) {
	s := testenv.Must(New(t.Context(), options(t.TempDir())))(t)
	defer func() { testenv.Check(t, s.Close()) }()
	c := testenv.Must(s.AgentCredentials("boat", []netip.Addr{netip.MustParseAddr("192.0.2.1")}))(t)
	for _, path := range []string{c.KubeletKubeconfig, c.NetworkKubeconfig, c.KubeletServing, c.ServerCAFile, c.ClientCAFile} {
		if fi, err := os.Stat(path); err != nil || fi.Size() == 0 || !strings.HasPrefix(path, c.Dir) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// waitFor waits until ok returns true.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testenv.Until(t, 2*time.Minute, what, ok)
}

// start runs a server until the returned function is called.
func start(t *testing.T, o Options) (*Server, func()) {
	t.Helper()
	s := testenv.Must(New(t.Context(), o))(t)
	controller.EncryptionConfigFileChangePollDuration = 500 * time.Millisecond
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			testenv.Check(t, err, "the server ended with")
		case <-time.After(2 * time.Minute):
			t.Error("the server does not stop")
		}
	}
	t.Cleanup(stop)
	select {
	case <-s.Ready():
	case err := <-done:
		stopped = true
		t.Fatalf("the server ended before it was ready: %v", err)
	case <-time.After(3 * time.Minute):
		t.Fatal("the server does not become ready")
	}
	select {
	case <-s.Serving():
	default:
		t.Error("the server is ready and takes no requests")
	}
	return s, stop
}
