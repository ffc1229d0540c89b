// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// checkUnpacked compares what the snapshotter's records call unpacked with what is on the disk. It returns an error if
// a layer has no folder. It also does if the pause program, without which no pod starts, differs from the one in the
// layer pause. pause may be nil. containerd must not run, and its records must be intact: bbolt panics on others.
func checkUnpacked(root, snapshotter string, pause []byte) error {
	dir := filepath.Join(root, "io.containerd.snapshotter.v1."+snapshotter)
	layers, err := layerFolders(dir)
	if err != nil {
		return err
	}
	for name, folder := range layers {
		if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the unpacked layer %s has no folder %s", path.Base(name), folder)
		}
	}
	if pause == nil {
		return nil
	}
	own := digest.FromBytes(pause).String() // what a snapshot of an image's first layer is called
	for name, folder := range layers {
		if path.Base(name) != own {
			continue
		}
		if snapshotter == "overlayfs" {
			folder = filepath.Join(folder, "fs")
		}
		if err := compareLayer(pause, folder); err != nil {
			return fmt.Errorf("the pause image: %w", err)
		}
	}
	return nil
}

// layerFolders returns the folders of the layers that the records call unpacked, by the layers' names, which are
// NAMESPACE/NUMBER/CHAIN. Containers' own folders are left out: one that a power cut took is made again.
func layerFolders(dir string) (map[string]string, error) {
	file := filepath.Join(dir, "metadata.db")
	if info, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		unpacked, err := os.ReadDir(filepath.Join(dir, "snapshots"))
		if err == nil && len(unpacked) > 0 {
			return nil, fmt.Errorf("there is no %s, and there are %d unpacked layers and containers", file, len(unpacked))
		}
		return nil, nil
	}
	records, err := storage.NewMetaStore(file, func(o *bolt.Options) error { o.ReadOnly = true; return nil })
	if err != nil {
		return nil, fmt.Errorf("open the snapshotter's records: %w", err)
	}
	defer func() { _ = records.Close() }() // it was only read
	folders := map[string]string{}
	err = records.WithTransaction(context.Background(), false, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if errdefs.IsNotFound(err) { // nothing was unpacked since bbolt made the file
			return nil
		}
		if err != nil {
			return err
		}
		for id, name := range ids {
			if _, info, _, err := storage.GetInfo(ctx, name); err != nil {
				return err
			} else if info.Kind == snapshots.KindCommitted {
				folders[name] = filepath.Join(dir, "snapshots", id)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the snapshotter's records: %w", err)
	}
	return folders, nil
}

// pauseLayer reads the only layer of an archive that internal/imagetar has written. It is nil for no archive.
func pauseLayer(archive string) ([]byte, error) {
	if archive == "" {
		return nil, nil
	}
	f, err := os.Open(archive)
	if err != nil {
		return nil, fmt.Errorf("read the pause image: %w", err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("find the layer in %s: %w", archive, err)
		}
		if strings.HasSuffix(h.Name, "layer.tar") {
			return io.ReadAll(r)
		}
	}
}

// compareLayer returns an error if a file of the layer is not in the folder as it is in the layer.
func compareLayer(layer []byte, folder string) error {
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read its layer: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		want, err := io.ReadAll(r)
		if err != nil {
			return fmt.Errorf("read %s in its layer: %w", h.Name, err)
		}
		file := filepath.Join(folder, filepath.Clean("/"+h.Name))
		got, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s is not what was imported: it has %d bytes, of which %d should be there", file, len(got), len(want))
		}
	}
}
