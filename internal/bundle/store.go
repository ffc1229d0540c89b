// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// folderStore keeps content in files of a temporary folder that are named by their digests. It has the part of a
// content store that reading an archive needs; other calls panic. Unlike containerd's own it flushes nothing to disk,
// and logs nothing about the file system.
type folderStore struct {
	content.Store
	dir string
}

func (s folderStore) path(d digest.Digest) string { return filepath.Join(s.dir, d.Encoded()) }

// Info implements content.InfoProvider.
func (s folderStore) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return content.Info{}, fmt.Errorf("%q is no SHA-256 digest", d)
	}
	info, err := os.Stat(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return content.Info{}, fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound)
	}
	if err != nil {
		return content.Info{}, err
	}
	return content.Info{Digest: d, Size: info.Size()}, nil
}

// ReaderAt implements content.Provider.
func (s folderStore) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	info, err := s.Info(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(s.path(d.Digest))
	if err != nil {
		return nil, err
	}
	return storedBlob{f, info.Size}, nil
}

type storedBlob struct {
	*os.File
	size int64
}

func (b storedBlob) Size() int64 { return b.size }

// Walk implements content.Manager: the store has no labels, by which content could be found.
func (s folderStore) Walk(context.Context, content.WalkFunc, ...string) error { return nil }

// Writer implements content.Ingester.
func (s folderStore) Writer(context.Context, ...content.WriterOpt) (content.Writer, error) {
	f, err := os.CreateTemp(s.dir, "new")
	if err != nil {
		return nil, err
	}
	return &storeWriter{f, s, digest.SHA256.Digester(), 0}, nil
}

// storeWriter writes one piece of content.
type storeWriter struct {
	file  *os.File
	store folderStore
	sum   digest.Digester
	size  int64
}

func (w *storeWriter) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	w.sum.Hash().Write(p[:n])
	w.size += int64(n)
	return n, err
}

func (w *storeWriter) Close() error          { return w.file.Close() }
func (w *storeWriter) Digest() digest.Digest { return w.sum.Digest() }

// Status implements content.Writer: nothing is ever resumed.
func (w *storeWriter) Status() (content.Status, error) { return content.Status{Offset: w.size}, nil }

// Truncate implements content.Writer.
func (w *storeWriter) Truncate(int64) error { return errdefs.ErrNotImplemented }

// Commit implements content.Writer.
func (w *storeWriter) Commit(_ context.Context, size int64, expected digest.Digest, _ ...content.Opt) error {
	if size > 0 && size != w.size || expected != "" && expected != w.Digest() {
		return fmt.Errorf("content has another size or digest than it should: %w", errdefs.ErrFailedPrecondition)
	}
	return os.Rename(w.file.Name(), w.store.path(w.Digest()))
}
