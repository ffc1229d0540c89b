// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// NamesPath is where servers answer questions for names of imported images.
	NamesPath = "/v1/names"
	// BlobsPath is where machines answer for content, with its digest.
	BlobsPath = "/v1/blobs/"
	// maxDocuments bounds the index and the manifest of one image, in bytes.
	maxDocuments = 4 << 20
	// maxNames bounds the images in one list.
	maxNames = 4096
)

// Published is an image that a server's node has imported from its images folder. Other nodes may fetch it. JSON, in
// which members are only added.
type Published struct {
	// Name is the full name, as pods have it.
	Name string `json:"name"`
	// Platform is the only one for which the server has the image, such as linux/amd64.
	Platform string `json:"platform"`
	// Imported is when the server imported the image, by its own clock. It is zero if that is unknown.
	Imported time.Time `json:"imported,omitzero"`
	// Target is the image's index or manifest.
	Target ocispec.Descriptor `json:"target"`
	// Documents are the target and, if that is an index, the manifest for Platform. Lists of images have none.
	Documents [][]byte `json:"documents,omitempty"`
}

// Publish returns the images that the node has imported from archives in the images folder. An image whose archive is
// gone is among them for ten minutes. With a name it returns the image of that name alone, with its documents.
func (s Containerd) Publish(ctx context.Context, name string) ([]Published, error) {
	ctx = namespaces.WithNamespace(ctx, s.Namespace)
	filter := fmt.Sprintf("labels.%q", archiveLabel)
	if name != "" {
		filter += fmt.Sprintf(",name==%q", name)
	}
	all, err := s.Client.ImageService().List(ctx, filter)
	if err != nil {
		return nil, fmt.Errorf("list imported images: %w", err)
	}
	out := []Published{}
	for _, im := range all[:min(len(all), maxNames)] {
		p, err := s.publish(ctx, im)
		if errdefs.IsNotFound(err) {
			continue // some of it is lost, or was not in the archive
		}
		if err != nil {
			return nil, fmt.Errorf("read the imported image %s: %w", im.Name, err)
		}
		if name == "" {
			p.Documents = nil
		}
		out = append(out, p)
	}
	return out, nil
}

// publish returns an image of the store as other nodes learn of it.
func (s Containerd) publish(ctx context.Context, im images.Image) (Published, error) {
	out := Published{Name: im.Name, Platform: platforms.DefaultString(), Target: im.Target}
	blobs, size := s.Client.ContentStore(), int64(0)
	var config digest.Digest
	children := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(blobs), platforms.Default()), platforms.Default(), 1)
	err := images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsConfigType(d.MediaType) {
			config = d.Digest
		}
		if !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType) {
			return nil, nil
		}
		if size += d.Size; size > maxDocuments {
			return nil, fmt.Errorf("its index and manifest are larger than %d bytes", maxDocuments)
		}
		document, err := content.ReadBlob(ctx, blobs, d)
		if err != nil {
			return nil, err
		}
		out.Documents = append(out.Documents, document)
		return children(ctx, d)
	}), im.Target)
	if err != nil {
		return out, err
	}
	info, err := blobs.Info(ctx, config)
	if err != nil {
		return out, err
	}
	if info.Labels[importedLabel] == "" {
		return out, fmt.Errorf("the archive did not hold all of %s: %w", im.Name, errdefs.ErrNotFound)
	}
	out.Imported, _ = time.Parse(time.RFC3339, info.Labels[importedLabel]) // earlier versions wrote "true"
	return out, nil
}

// ServeNames answers GET NamesPath with the list that Publish returns, in JSON. The query may have a name.
func (s Containerd) ServeNames(w http.ResponseWriter, r *http.Request) {
	out, err := s.Publish(r.Context(), r.URL.Query().Get("name"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // an error means that the client has ended
}
