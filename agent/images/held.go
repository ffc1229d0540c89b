// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
)

// heldBlobs is a content store that notes which content is written through it, also where that was there before. So it is known what an archive itself held:
// a manifest may name content that a tenant pulled to this node.
type heldBlobs struct {
	content.Store
	mu   sync.Mutex
	held map[digest.Digest]bool
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
	to *heldBlobs
}

// Commit implements content.Writer.
func (w *heldWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	d := w.Digest()
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		w.to.mu.Lock()
		defer w.to.mu.Unlock()
		if w.to.held == nil {
			w.to.held = map[digest.Digest]bool{}
		}
		w.to.held[d] = true
	}
	return err
}

// importer imports archives with the client's services and writes through h.
func (h *heldBlobs) importer(c *client.Client) (*client.Client, error) {
	out, err := client.New("", client.WithServices(client.WithContentStore(h), client.WithImageStore(c.ImageService()), client.WithLeasesService(c.LeasesService())))
	if err != nil {
		return nil, fmt.Errorf("make a client for the import: %w", err)
	}
	return out, nil
}

// whole says whether the configuration and all layers of an image for this machine were written. A layer that was there in another compression, with which the
// importer replaces the archive's, counts.
func (h *heldBlobs) whole(ctx context.Context, im images.Image) (config digest.Digest, whole bool, err error) {
	m, err := images.Manifest(ctx, h.Store, im.Target, platforms.Default())
	if err != nil {
		return "", false, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, layer := range m.Layers {
		if h.held[layer.Digest] {
			continue
		}
		info, err := h.Store.Info(ctx, layer.Digest)
		if err != nil && !errdefs.IsNotFound(err) {
			return "", false, fmt.Errorf("look up the layer %s: %w", layer.Digest, err)
		}
		if plain := info.Labels[labels.LabelUncompressed]; plain == "" || !h.held[digest.Digest(plain)] {
			return m.Config.Digest, false, nil
		}
	}
	return m.Config.Digest, h.held[m.Config.Digest], nil
}
