// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/coracle-k8s/coracle/agent/records"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/internal/podkill"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// unpackedRoot is a root in which the snapshotter's records have the pause image's layer, another layer and the folder
// of a container.
func unpackedRoot(t *testing.T, snapshotter string, layer []byte) (root, dir string) {
	t.Helper()
	root = t.TempDir()
	dir = filepath.Join(root, "io.containerd.snapshotter.v1."+snapshotter)
	testenv.NoError(t, os.MkdirAll(filepath.Join(dir, "snapshots"), 0o700))
	records := testenv.Must(storage.NewMetaStore(filepath.Join(dir, "metadata.db")))(t)
	defer records.Close()
	testenv.NoError(t, records.WithTransaction(t.Context(), true, func(ctx context.Context) error {
		for i, chain := range []string{"k8s.io/2/" + digest.FromBytes(layer).String(), "k8s.io/4/" + digest.FromString("other").String()} {
			s, err := storage.CreateSnapshot(ctx, snapshots.KindActive, "extract "+chain, "")
			testenv.NoError(t, err)
			fs := filepath.Join(dir, "snapshots", s.ID, map[string]string{"overlayfs": "fs"}[snapshotter])
			testenv.NoError(t, os.MkdirAll(fs, 0o755))
			if i == 0 {
				testenv.NoError(t, os.WriteFile(filepath.Join(fs, "pause"), []byte("a program"), 0o555))
			}
			testenv.Must(storage.CommitActive(ctx, "extract "+chain, chain, snapshots.Usage{}))(t)
		}
		_, err := storage.CreateSnapshot(ctx, snapshots.KindActive, "k8s.io/5/container", "") // its folder is lost
		return err
	}))
	return root, dir
}

// TestUnpackedLayersAreThere damages what the snapshotter's records call unpacked.
func TestUnpackedLayersAreThere(t *testing.T) {
	pauseTar := filepath.Join(t.TempDir(), "pause.tar")
	var b bytes.Buffer
	testenv.NoError(t, imagetar.Write(&b, imagetar.Image{Name: "example.test/pause:1", Files: []imagetar.File{{Path: "pause", Mode: 0o555, Body: []byte("a program")}}}))
	testenv.NoError(t, os.WriteFile(pauseTar, b.Bytes(), 0o600))
	layer := testenv.Must(pauseLayer(pauseTar))(t)
	for name, c := range map[string]struct {
		damage  func(pause, dir string) error
		damaged string // a part of the error
	}{
		"all is there":          {damage: func(string, string) error { return nil }},
		"pause is empty":        {func(pause, _ string) error { return os.Truncate(pause, 0) }, "/pause is not what was imported: it has 0 bytes"},
		"pause is another":      {func(pause, _ string) error { return os.WriteFile(pause, []byte("a virus!!"), 0o555) }, "/pause is not what was imported"},
		"pause is gone":         {func(pause, _ string) error { return os.Remove(pause) }, "no such file"},
		"a layer has no folder": {func(_, dir string) error { return os.RemoveAll(filepath.Join(dir, "snapshots", "2")) }, "has no folder"},
		"no folders at all":     {func(_, dir string) error { return os.RemoveAll(filepath.Join(dir, "snapshots")) }, "has no folder"},
		"records are empty":     {func(_, dir string) error { return os.Truncate(filepath.Join(dir, "metadata.db"), 0) }, "there are 2 unpacked layers"},
		"records are gone":      {func(_, dir string) error { return os.Remove(filepath.Join(dir, "metadata.db")) }, "there are 2 unpacked layers"},
		"no records":            {damage: func(_, dir string) error { return os.RemoveAll(dir) }},
	} {
		for _, snapshotter := range []string{"overlayfs", "native"} {
			t.Run(name+", "+snapshotter, func(t *testing.T) {
				root, dir := unpackedRoot(t, snapshotter, layer)
				found := testenv.Must(filepath.Glob(filepath.Join(dir, "snapshots/1/pause")))(t)
				found = append(found, testenv.Must(filepath.Glob(filepath.Join(dir, "snapshots/1/fs/pause")))(t)...)
				testenv.Require(t, len(found) == 1, "there are %v", found)
				testenv.NoError(t, c.damage(found[0], dir))
				err := checkUnpacked(root, snapshotter, layer)
				if c.damaged == "" {
					testenv.NoError(t, err)
				} else {
					testenv.WantError(t, err, c.damaged)
				}
				if c.damaged == "" || name == "pause is empty" { // a pause image of the operator's own is not compared
					testenv.NoError(t, checkUnpacked(root, snapshotter, nil))
				}
			})
		}
	}
}

// TestNothingUnpackedIsNoDamage: the snapshotter may have been asked for what is unpacked before there was anything.
func TestNothingUnpackedIsNoDamage(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "io.containerd.snapshotter.v1.native")
	s := testenv.Must(native.NewSnapshotter(dir))(t)
	_ = s.Walk(t.Context(), func(context.Context, snapshots.Info) error { return nil }) // makes the records
	testenv.NoError(t, s.Close())
	testenv.NoError(t, testenv.Err(os.Stat(filepath.Join(dir, "metadata.db"))))
	testenv.NoError(t, checkUnpacked(root, "native", nil))
}

// TestLostPauseArchiveIsNoDamage: what coracle itself unpacked says nothing about containerd's records, which stay.
func TestLostPauseArchiveIsNoDamage(t *testing.T) {
	dir := t.TempDir()
	root, archive := filepath.Join(dir, "containerd"), filepath.Join(dir, "pause.tar")
	db := filepath.Join(root, "io.containerd.metadata.v1.bolt", "meta.db")
	testenv.NoError(t, os.MkdirAll(filepath.Dir(db), 0o700))
	testenv.NoError(t, testenv.Must(bolt.Open(db, 0o600, nil))(t).Close())
	log := slog.New(slog.DiscardHandler)
	s := &Server{snapshotter: "native", opts: Options{Root: root, Runtime: config.Runtime{Snapshotter: "native"}, PauseTar: archive, Logger: log,
		Records: &records.Records{Node: podkill.Node{Root: root, State: filepath.Join(dir, "state")}, Logger: log}}}
	testenv.WantError(t, s.checkRecords(t.Context()), "pause.tar: no such file")
	testenv.NoError(t, os.WriteFile(archive, []byte("garbage"), 0o600))
	testenv.WantError(t, s.checkRecords(t.Context()), "find the layer in "+archive)
	testenv.NoError(t, testenv.Err(os.Stat(db)))
}
