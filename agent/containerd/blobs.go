// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	peers "github.com/coracle-k8s/coracle/content"
)

const (
	// growingFor is how recently a pull must have received something to count as going on.
	growingFor = 10 * time.Second
	// growthPoll is the pause before a reader looks again for more of a blob that is being received.
	growthPoll = 50 * time.Millisecond
)

// Blobs is the content that this node serves to other machines: layers and configurations of images. It implements
// peers.Source.
type Blobs struct {
	// Store is containerd's content store, Root its folder.
	Store content.Store
	Root  string
}

// Blobs returns the content that this node serves.
func (s *Server) Blobs() Blobs { return Blobs{s.client.ContentStore(), s.opts.Root} }

// Open implements peers.Source.
func (b Blobs) Open(ctx context.Context, d digest.Digest, offset int64) (*peers.Blob, error) {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	info, err := b.Store.Info(ctx, d)
	if errdefs.IsNotFound(err) {
		return b.openGrowing(ctx, d, offset)
	}
	if err != nil {
		return nil, err
	}
	if !isServed(info) {
		return nil, fmt.Errorf("%s is a manifest, which only registries have: %w", d, errdefs.ErrNotFound)
	}
	r, err := b.Store.ReaderAt(ctx, ocispec.Descriptor{Digest: d, Size: info.Size})
	if err != nil {
		return nil, err
	}
	body := struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(r, offset, max(info.Size-offset, 0)), r}
	return &peers.Blob{Size: info.Size, Body: body}, nil
}

// Digests implements peers.Source.
func (b Blobs) Digests(ctx context.Context) (all []digest.Digest, err error) {
	err = b.Store.Walk(namespaces.WithNamespace(ctx, Namespace), func(info content.Info) error {
		if isServed(info) {
			all = append(all, info.Digest)
		}
		return nil
	})
	return all, err
}

// isServed reports whether a blob is a layer or a configuration: manifests and indexes refer to other content.
func isServed(info content.Info) bool {
	for label := range info.Labels {
		if strings.HasPrefix(label, "containerd.io/gc.ref.content") {
			return false
		}
	}
	return true
}

// openGrowing opens a blob that a pull is receiving. The local store keeps it in a folder of its own until it is whole
// (plugins/content/local): "ref" has the pull's name of it, "total" its size, "data" what has arrived.
func (b Blobs) openGrowing(ctx context.Context, d digest.Digest, offset int64) (*peers.Blob, error) {
	absent := fmt.Errorf("%s is not on this node: %w", d, errdefs.ErrNotFound)
	dirs, err := filepath.Glob(filepath.Join(b.Root, "io.containerd.content.v1.content", "ingest", "*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		ref, err := os.ReadFile(filepath.Join(dir, "ref"))
		if name := path.Base(string(ref)); err != nil || name != "layer-"+d.String() && name != "config-"+d.String() {
			continue
		}
		total, err := os.ReadFile(filepath.Join(dir, "total"))
		size, err2 := strconv.ParseInt(string(total), 10, 64)
		data, err3 := os.Open(filepath.Join(dir, "data"))
		if errors.Join(err, err2, err3) != nil {
			continue // it has just ended
		}
		if info, err := data.Stat(); err != nil || time.Since(info.ModTime()) > growingFor || offset > size {
			_ = data.Close() // it was only read
			return nil, absent
		}
		return &peers.Blob{Size: size, Partial: true, Body: &growing{ctx, data, dir, offset, size}}, nil
	}
	return nil, absent
}

// growing reads a file that a pull writes, up to its final size.
type growing struct {
	ctx          context.Context
	data         *os.File
	dir          string
	offset, size int64
}

// Read implements io.Reader.
func (g *growing) Read(p []byte) (int, error) {
	for {
		_, gone := os.Stat(g.dir) // before the read: what was written last is read then
		n, err := g.data.ReadAt(p, g.offset)
		g.offset += int64(n)
		switch {
		case n > 0:
			return n, nil
		case g.offset >= g.size:
			return 0, io.EOF
		case !errors.Is(err, io.EOF):
			return 0, err
		case errors.Is(gone, fs.ErrNotExist) || !g.grows():
			return 0, io.ErrUnexpectedEOF
		}
		timer := time.NewTimer(growthPoll)
		select {
		case <-timer.C:
		case <-g.ctx.Done():
			timer.Stop()
			return 0, context.Cause(g.ctx)
		}
	}
}

// grows reports whether the pull goes on, and has not dropped what was read.
func (g *growing) grows() bool {
	info, err := g.data.Stat()
	return err == nil && info.Size() >= g.offset && time.Since(info.ModTime()) <= growingFor
}

// Close implements io.Closer.
func (g *growing) Close() error { return g.data.Close() }
