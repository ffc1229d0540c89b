// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

// In namespaces of its own: the host's network is not a test's to clean.
func TestMain(m *testing.M) { os.Exit(uml.Main(m, netns.Main)) }

func write(t *testing.T, path, text string) {
	t.Helper()
	testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	testenv.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

// TestOthersServiceTablesStay: the kube-proxy of another cluster on this host calls its tables as coracle's proxy does.
func TestOthersServiceTablesStay(t *testing.T) {
	netns.Require(t)
	table, run := nft.Table{Family: nft.IPv4, Name: nft.ServiceTable}, t.TempDir()
	testenv.NoError(t, nft.Ensure(table))
	testenv.NoError(t, cleanNetwork(run))
	if there, err := nft.Exists(table); err != nil || !there {
		t.Errorf("a table that coracle did not make is there: %v, %v", there, err)
	}
	testenv.NoError(t, nft.RecordServiceRules(nft.ServiceRecordIn(run), nft.ServicesByNFTables))
	testenv.NoError(t, cleanNetwork(run))
	if there, err := nft.Exists(table); err != nil || there {
		t.Errorf("the table that coracle made is there: %v, %v", there, err)
	}
}

// TestKernelWithoutNFTables: on a kernel without nftables there is nothing to remove from it, and all else is removed.
func TestKernelWithoutNFTables(t *testing.T) {
	if !uml.Inside() {
		uml.Run(t, uml.Options{Within: 5 * time.Minute})
		return
	}
	run := t.TempDir()
	for range 2 { // the second time nothing is recorded
		testenv.Check(t, cleanNetwork(run))
		for _, backend := range []string{nft.ServicesByNFTables, nft.ServicesByIPVS} {
			testenv.NoError(t, nft.RecordServiceRules(nft.ServiceRecordIn(run), backend))
		}
		testenv.Check(t, cleanNetwork(run), "with a record")
		testenv.Fails(t, testenv.Err(os.Stat(nft.ServiceRecordIn(run))), "the record is left")
	}
}

// TestRefusesWhileRunning: nothing is touched while a coracle holds its pid file.
func TestRefusesWhileRunning(t *testing.T) {
	paths := config.NewPaths(t.TempDir(), "")
	write(t, paths.PIDFile, "4711\n")
	f, err := os.Open(paths.PIDFile)
	testenv.NoError(t, err)
	defer f.Close()
	testenv.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	var out bytes.Buffer
	_, err = Run(context.Background(), Options{Paths: paths, Grace: time.Second, RemoveData: true, Progress: &out})
	if err == nil || !strings.Contains(err.Error(), "running as process 4711") || out.Len() > 0 {
		t.Errorf("got %v, having said %q", err, out.String())
	}
}

func TestShimSocketDirs(t *testing.T) {
	state := t.TempDir()
	bundle := filepath.Join(state, "io.containerd.runtime.v2.task", "k8s.io")
	write(t, bundle+"/abc/bootstrap.json", `{"version":3,"address":"unix:///run/coracle-shims/0102/ffff","protocol":"ttrpc"}`)
	write(t, bundle+"/def/bootstrap.json", `{"version":3,"address":"unix:///run/coracle/containerd/s/ffff","protocol":"ttrpc"}`)
	write(t, bundle+"/bad/bootstrap.json", `{`)
	testenv.EqualSlices(t, shimSocketDirs(state), []string{"/run/coracle-shims/0102"}, "")
}

func TestPodUIDs(t *testing.T) {
	state := t.TempDir()
	const uid = "0f7c2a1e-3f41-4a55-9a01-5a7f2f6f0b11"
	bundle := filepath.Join(state, "io.containerd.runtime.v2.task", "k8s.io")
	write(t, bundle+"/abc/config.json", `{"annotations":{"io.kubernetes.cri.sandbox-uid":"`+uid+`"}}`)
	write(t, bundle+"/def/config.json", `{"annotations":{"io.kubernetes.cri.sandbox-uid":"`+uid+`"}}`)
	write(t, bundle+"/ghi/config.json", `{"annotations":{"io.kubernetes.cri.sandbox-uid":"../../../../etc/../var/lib/precious"}}`)
	write(t, bundle+"/jkl/config.json", `{"annotations":{}}`)
	write(t, bundle+"/bad/config.json", `{`)
	testenv.EqualSlices(t, podUIDs(state), []string{uid}, "")
}

func TestRemoveAllKeepsWhatMatters(t *testing.T) {
	var keep remover
	testenv.NoError(t, keep.removeAll("", "/", "relative"))
	dir := filepath.Join(t.TempDir(), "data")
	write(t, dir+"/server/token", "x")
	if err := keep.removeAll(dir, dir+"/never-was"); err != nil || !doesNotExist(dir) || len(keep.keptPaths) > 0 {
		t.Errorf("%v; still there: %t; kept %v", err, !doesNotExist(dir), keep.keptPaths)
	}
}

// TestRemovalKeepsThePrograms: they are installed, and the command is run again if something could not be removed.
func TestRemovalKeepsThePrograms(t *testing.T) {
	var keep remover
	dir := filepath.Join(t.TempDir(), "data")
	write(t, dir+"/server/token", "x")
	write(t, dir+"/versions/digest/coracle", "x")
	testenv.NoError(t, keep.removeBut(dir, "versions"))
	testenv.True(t, doesNotExist(dir+"/server") && !doesNotExist(dir+"/versions/digest/coracle"), "the data is there, or the program is gone")
	testenv.NoError(t, keep.removeAll(dir+"/versions"))
	testenv.NoError(t, keep.removeBut(dir, "versions"))
	testenv.True(t, doesNotExist(dir), "the folder is there")
}

// TestRemovalKeepsMountedFolders: what is mounted below a folder stays, all else in it goes.
func TestRemovalKeepsMountedFolders(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	for _, name := range []string{"/server/token", "/images/stick/mine.tar", "/images/theirs.tar", "/images/stick-not/theirs.tar", "/deep/er/mine"} {
		write(t, dir+name, "x")
	}
	testenv.NoError(t, removeAround(dir, []string{dir + "/images/stick", dir + "/deep/er"}))
	var left []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		left = append(left, strings.TrimPrefix(path, dir))
		return err
	})
	want := []string{"", "/deep", "/deep/er", "/deep/er/mine", "/images", "/images/stick", "/images/stick/mine.tar"}
	testenv.False(t, err != nil || !slices.Equal(left, want), "left %q, %v; want %q", left, err, want)
}
