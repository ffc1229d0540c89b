// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// heldBlobs is a content store that records which content is written through it, even if the store had it before. So it
// is known which content an archive itself had: a manifest may name content that a tenant pulled to this node.
type heldBlobs struct {
	content.Store
	mu      sync.Mutex
	written map[digest.Digest]bool
}

// Writer implements content.Ingester.
func (h *heldBlobs) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := h.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &heldWriter{w, h}, nil
}

type heldWriter struct {
	content.Writer
	blobs *heldBlobs
}

// Commit implements content.Writer.
func (w *heldWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	d := w.Digest()
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		w.blobs.mu.Lock()
		defer w.blobs.mu.Unlock()
		if w.blobs.written == nil {
			w.blobs.written = map[digest.Digest]bool{}
		}
		w.blobs.written[d] = true
	}
	return err
}

// importer returns a client that imports archives with c's leases. It writes content through h and image names through
// names.
func (h *heldBlobs) importer(c *client.Client, names images.Store) (*client.Client, error) {
	out, err := client.New("", client.WithServices(client.WithContentStore(h), client.WithImageStore(names),
		client.WithLeasesService(c.LeasesService())))
	if err != nil {
		return nil, fmt.Errorf("make a client for the import: %w", err)
	}
	return out, nil
}

// errOtherLayer means that an archive's layer is not the one that the image's configuration names.
var errOtherLayer = errors.New("a layer of the archive does not match the image's configuration")

// isComplete reports whether the configuration of an image for this machine and all layers that it names were written.
// The configuration names layers by their uncompressed content (diff IDs), and containers get these. The manifest may
// name any others, and unpacking ignores those where the image is unpacked already. So the uncompressed content of each
// layer is compared. A layer counts, too, that the store had in another compression and the importer uses in place of
// the archive's.
func (h *heldBlobs) isComplete(ctx context.Context, im images.Image) (config digest.Digest, whole bool, err error) {
	m, err := images.Manifest(ctx, h.Store, im.Target, platforms.Default())
	if err != nil {
		return "", false, err
	}
	contents, err := images.RootFS(ctx, h.Store, m.Config)
	if err != nil {
		return "", false, fmt.Errorf("read which layers the configuration %s names: %w", m.Config.Digest, err)
	}
	layers := slices.DeleteFunc(slices.Clone(m.Layers), func(d ocispec.Descriptor) bool { return !images.IsLayerType(d.MediaType) })
	if len(layers) != len(contents) {
		return "", false, fmt.Errorf("%w: there are %d, and it names %d", errOtherLayer, len(layers), len(contents))
	}
	whole = h.isWritten(m.Config.Digest)
	for i, layer := range layers {
		if !h.isWritten(layer.Digest) {
			whole = whole && h.isWritten(contents[i])
			continue
		}
		switch is, err := h.uncompressed(ctx, layer); {
		case err != nil:
			return "", false, fmt.Errorf("%w: %s cannot be read: %w", errOtherLayer, layer.Digest, err)
		case is != contents[i]:
			return "", false, fmt.Errorf("%w: %s holds %s, and it names %s", errOtherLayer, layer.Digest, is, contents[i])
		}
	}
	return m.Config.Digest, whole, nil
}

// uncompressed returns the digest of a layer's uncompressed content. It detects the compression from the content, as
// unpacking does: a layer's media type may not name it.
func (h *heldBlobs) uncompressed(ctx context.Context, layer ocispec.Descriptor) (digest.Digest, error) {
	info, err := h.Store.Info(ctx, layer.Digest)
	if err != nil {
		return "", err
	}
	if is, ok := info.Labels[labels.LabelUncompressed]; ok {
		return digest.Parse(is) // the program that unpacked it has compared the digest
	}
	blob, err := h.Store.ReaderAt(ctx, layer)
	if err != nil {
		return "", err
	}
	defer blob.Close()
	plain, err := compression.DecompressStream(untilDone{ctx, content.NewReader(blob)})
	if err != nil {
		return "", err
	}
	defer plain.Close()
	return digest.FromReader(plain)
}

// untilDone is a reader that ends with its context.
type untilDone struct {
	ctx    context.Context
	reader io.Reader
}

// Read implements io.Reader.
func (r untilDone) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.reader.Read(p)
}

// isWritten reports whether content was written.
func (h *heldBlobs) isWritten(d digest.Digest) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.written[d]
}
