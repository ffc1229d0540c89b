// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// readArchive reads an archive of images (docker-archive or OCI layout; plain, gzip or zstd) into a store. It returns
// the images with their names, and calls add with each blob that belongs to one of them.
func readArchive(ctx context.Context, store content.Store, file string, add func(ocispec.Descriptor)) ([]ocispec.Descriptor, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	plain, err := compression.DecompressStream(withContext{ctx, f})
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	found, err := archive.ImportIndex(ctx, store, plain)
	if err != nil {
		return nil, fmt.Errorf("it is no archive of images, or is cut off: %w", err)
	}
	data, err := content.ReadBlob(ctx, store, found)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, err
	}
	var out []ocispec.Descriptor
	for _, m := range index.Manifests {
		name, err := imageName(m)
		if err != nil {
			return nil, err
		}
		if err := walkImage(ctx, store, m, add); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		out = append(out, ocispec.Descriptor{
			MediaType: m.MediaType, Digest: m.Digest, Size: m.Size, Platform: m.Platform,
			// containerd knows images by the first, others by the second.
			Annotations: map[string]string{images.AnnotationImageName: name, ocispec.AnnotationRefName: name},
		})
	}
	if len(out) == 0 {
		return nil, errors.New("the archive has no image")
	}
	return out, nil
}

// imageName returns the whole name of an image in an archive, by which pods have it.
func imageName(m ocispec.Descriptor) (string, error) {
	for _, key := range []string{images.AnnotationImageName, ocispec.AnnotationRefName} {
		ref, err := reference.ParseNormalizedNamed(m.Annotations[key])
		if err == nil && !reference.IsNameOnly(ref) {
			return ref.String(), nil
		}
	}
	return "", errors.New("the archive has an image without a name; save it with a name and a tag, as docker save NAME:TAG does")
}

// walkImage calls add with each blob of an image. An index may name manifests that the archive does not have: they are
// of other processors.
func walkImage(ctx context.Context, store content.Store, image ocispec.Descriptor, add func(ocispec.Descriptor)) error {
	found := false
	err := images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		info, err := store.Info(ctx, d.Digest)
		if errdefs.IsNotFound(err) && images.IsManifestType(d.MediaType) && d.Digest != image.Digest {
			return nil, images.ErrSkipDesc
		}
		if err != nil {
			return nil, fmt.Errorf("the archive lacks a part of it: %w", err)
		}
		found = found || images.IsManifestType(d.MediaType)
		d.Size = info.Size
		add(d)
		return images.Children(ctx, store, d)
	}), image)
	if err == nil && !found {
		err = errors.New("the archive has none of its manifests")
	}
	return err
}
