// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// writeTo writes a bundle to the file at path. The file appears when it is whole and on disk; one that was there is
// replaced then. The function open returns the content of a blob.
func writeTo(ctx context.Context, path string, index []byte, signatures []signature, blobs []Blob,
	open func(Blob) (io.ReadCloser, error)) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", path, err), f.Close(), os.Remove(f.Name()))
		}
	}()
	buffered := bufio.NewWriterSize(f, 1<<20)
	if err := write(ctx, buffered, index, signatures, blobs, open); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return errors.Join(f.Close(), atomicfile.SyncDir(dir))
}

// write writes the files of a bundle in their order.
func write(ctx context.Context, w io.Writer, index []byte, signatures []signature, blobs []Blob,
	open func(Blob) (io.ReadCloser, error)) error {
	if err := writeBytes(w, ocispec.ImageIndexFile, index); err != nil {
		return err
	}
	for _, s := range signatures {
		if err := writeBytes(w, s.name(), s.text); err != nil {
			return err
		}
	}
	if err := writeBytes(w, ocispec.ImageLayoutFile, []byte(layout)); err != nil {
		return err
	}
	for _, b := range blobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := writeBlob(ctx, w, b, open); err != nil {
			return err
		}
	}
	_, err := w.Write(make([]byte, tail))
	return err
}

func writeBlob(ctx context.Context, w io.Writer, b Blob, open func(Blob) (io.ReadCloser, error)) error {
	r, err := open(b)
	if err != nil {
		return err
	}
	defer r.Close()
	return writeFile(w, blobName(b.Digest), b.Size, withContext{ctx, checked(r, b, "a file has changed while it was read")})
}

func writeBytes(w io.Writer, name string, data []byte) error {
	h, err := header(name, int64(len(data)))
	if err != nil {
		return err
	}
	data = append(append(h, data...), make([]byte, padded(int64(len(data)))-int64(len(data)))...)
	_, err = w.Write(data)
	return err
}

func writeFile(w io.Writer, name string, size int64, r io.Reader) error {
	h, err := header(name, size)
	if err != nil {
		return err
	}
	if _, err := w.Write(h); err != nil {
		return err
	}
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	_, err = w.Write(make([]byte, padded(size)-size))
	return err
}

// withContext is a reader that fails once its context has ended.
type withContext struct {
	ctx context.Context
	r   io.Reader
}

func (c withContext) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
