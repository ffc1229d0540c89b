// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Names in a folder that Extract fills. The index and the signatures have the names that they have in a bundle.
const (
	IndexFile       = ocispec.ImageIndexFile
	ImagesFile      = "images.tar"
	ChartsFolder    = "charts"
	ManifestsFolder = "manifests"
)

// ImagesSize returns the size in bytes of the archive with the images, 0 if there are none.
func (x *Index) ImagesSize() (n int64) {
	for _, b := range x.imageBlobs() {
		n += block + padded(b.Size)
	}
	return n
}

// ExtractSize returns about how many bytes Extract writes.
func (x *Index) ExtractSize() int64 {
	n := x.ImagesSize()
	for _, files := range [][]File{x.Contents.Charts, x.Contents.Manifests} {
		for _, f := range files {
			n += padded(f.Size)
		}
	}
	return n + maxIndex
}

// imageBlobs returns the blobs for the archive with the images: all but the programs. Charts and manifests are small,
// and a chart may be a layer of an image, too.
func (x *Index) imageBlobs() (blobs []Blob) {
	if len(x.Manifests) == 0 {
		return nil
	}
	programs := map[digest.Digest]bool{}
	if x.Contents.Program != nil {
		for _, b := range x.Contents.Program.Builds {
			programs[b.Packed.Digest] = true
		}
	}
	for _, b := range x.Contents.Blobs {
		if !programs[b.Digest] {
			blobs = append(blobs, b)
		}
	}
	return blobs
}

// Extract makes a folder with what a bundle brings besides the program: an archive of its images in OCI layout
// (ImagesFile, if there are images), its charts and manifests, its index and its signatures. It checks all digests, and
// everything is on the disk when it returns. After an error the folder is incomplete, and is the caller's to remove.
func (b *Bundle) Extract(ctx context.Context, dir string) error {
	if err := b.extract(ctx, dir); err != nil {
		return fmt.Errorf("taking images, charts and manifests from the bundle: %w", err)
	}
	return nil
}

func (b *Bundle) extract(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, IndexFile), b.raw, 0o600); err != nil {
		return err
	}
	for _, s := range b.signatures {
		if err := atomicfile.Write(filepath.Join(dir, s.name()), s.text, 0o600); err != nil {
			return err
		}
	}
	if blobs := b.Index.imageBlobs(); len(blobs) > 0 {
		index, err := json.Marshal(ocispec.Index{Versioned: b.Index.Versioned, MediaType: b.Index.MediaType, Manifests: b.Index.Manifests})
		if err != nil {
			return err
		}
		open := func(blob Blob) (io.ReadCloser, error) {
			r, err := b.Blob(blob.Digest)
			return io.NopCloser(r), err
		}
		if err := writeTo(ctx, filepath.Join(dir, ImagesFile), index, nil, blobs, open); err != nil {
			return err
		}
	}
	if err := b.extractFiles(ctx, filepath.Join(dir, ChartsFolder), b.Index.Contents.Charts); err != nil {
		return err
	}
	if err := b.extractFiles(ctx, filepath.Join(dir, ManifestsFolder), b.Index.Contents.Manifests); err != nil {
		return err
	}
	return errors.Join(atomicfile.SyncDir(dir), atomicfile.SyncDir(filepath.Dir(dir)))
}

// extractFiles makes a folder with some files, unless there are none.
func (b *Bundle) extractFiles(ctx context.Context, dir string, files []File) error {
	if len(files) == 0 {
		return nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, f := range files {
		r, err := b.Blob(f.Digest)
		if err != nil {
			return err
		}
		if err := writeSynced(filepath.Join(dir, f.Name), withContext{ctx, r}); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(dir)
}

func writeSynced(path string, r io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Sync()
}

// ReadIndex reads a file with an index, such as Extract writes.
func ReadIndex(file string) (*Index, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseIndex(data)
}
