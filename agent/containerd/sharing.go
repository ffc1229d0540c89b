// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/services"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// Peers are the other machines of the cluster, as far as pulls use them.
type Peers interface {
	// Fetch fills an empty writer with a blob. After an error the writer is empty.
	Fetch(ctx context.Context, d digest.Digest, size int64, to content.Writer) error
	// FromOutside is called for each blob that a registry has sent, with the number of bytes.
	FromOutside(bytes int64)
}

// sharing is containerd's content store. A pull that opens a writer for a layer or a configuration finds it filled if
// another machine of the cluster has the blob: containerd commits a complete writer without asking the registry
// (remotes.Fetch). Manifests always come from the registry, with the pod's own credentials.
//
// An interrupted pull goes on at its registry. What an interrupted pull left that is complete and has another digest is
// dropped: containerd would try to commit it at each pull.
type sharing struct {
	content.Store
	peers *atomic.Pointer[Peers]
}

// Writer implements content.Ingester.
func (s sharing) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	peers := s.peers.Load()
	if err != nil || peers == nil {
		return w, err
	}
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return w, nil // the store has accepted it
		}
	}
	if !isShared(o.Ref, o.Desc) {
		return w, nil
	}
	now, err := w.Status()
	if err == nil && now.Offset >= o.Desc.Size && w.Digest() != o.Desc.Digest {
		now.Offset, err = 0, w.Truncate(0)
	}
	if err != nil || now.Offset == 0 && (*peers).Fetch(ctx, o.Desc.Digest, o.Desc.Size, w) == nil {
		return w, nil
	}
	return &pulled{Writer: w, peers: *peers}, nil
}

// isShared reports whether a writer is that of a pull for a layer or a configuration. ref is remotes.MakeRefKey's.
func isShared(ref string, d ocispec.Descriptor) bool {
	kind, _, _ := strings.Cut(ref, "-")
	switch {
	case d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.SHA256 || d.Size <= 0:
		return false
	case kind == "layer":
		return images.IsLayerType(d.MediaType) && !images.IsNonDistributable(d.MediaType)
	case kind == "config":
		return images.IsKnownConfig(d.MediaType)
	}
	return false
}

// pulled is a writer that a registry fills, unless it is complete.
type pulled struct {
	content.Writer
	peers    Peers
	received int64 // since the writer was opened, or truncated
}

// Write implements content.Writer.
func (p *pulled) Write(data []byte) (int, error) {
	n, err := p.Writer.Write(data)
	p.received += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom. Without it containerd would write a MiB at a time. Where the line is thin, that
// takes too long for the machines that read with the pull.
func (p *pulled) ReadFrom(from io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{p}, filled{from}, make([]byte, pullChunk))
}

// pullChunk is how many bytes of a registry's answer are written at a time.
const pullChunk = 64 << 10

// filled is a reader that fills the buffer.
type filled struct{ io.Reader }

// Read implements io.Reader.
func (f filled) Read(p []byte) (int, error) {
	n, err := io.ReadFull(f.Reader, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF // containerd compares the size
	}
	return n, err
}

// Truncate implements content.Writer.
func (p *pulled) Truncate(size int64) error {
	p.received = 0
	return p.Writer.Truncate(size)
}

// Commit implements content.Writer.
func (p *pulled) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := p.Writer.Commit(ctx, size, expected, opts...)
	if err == nil && p.received > 0 {
		p.peers.FromOutside(p.received)
	}
	return err
}

// registerContent registers the content services in place of upstream's, which have the store without sharing. It must
// be called before server.New, which builds the plugin graph.
func registerContent(peers *atomic.Pointer[Peers]) {
	registry.Register(&plugin.Registration{
		Type: plugins.ServicePlugin, ID: services.ContentService, Requires: []plugin.Type{plugins.MetadataPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			records, err := ic.GetSingle(plugins.MetadataPlugin)
			if err != nil {
				return nil, fmt.Errorf("find the metadata: %w", err)
			}
			return sharing{records.(*metadata.DB).ContentStore(), peers}, nil
		},
	})
	registry.Register(&plugin.Registration{
		Type: plugins.GRPCPlugin, ID: "content", Requires: []plugin.Type{plugins.ServicePlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			store, err := ic.GetByID(plugins.ServicePlugin, services.ContentService)
			if err != nil {
				return nil, fmt.Errorf("find the content service: %w", err)
			}
			return contentserver.New(store.(content.Store)), nil
		},
	})
}

// transferStore is the path of the field with the transfer service's content store. Upstream has no function that sets
// it: the service takes the store from the metadata.
var transferStore = []string{"content"}

// shareTransfers makes pulls by the transfer service use the shared store.
func shareTransfers(service any, peers *atomic.Pointer[Peers]) error {
	store, err := kubecompat.Field[content.Store](service, transferStore)
	if err != nil {
		return err
	}
	*store = sharing{*store, peers}
	return nil
}
