// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// writtenNames is a store of image names. It records which names are written through it, and their earlier images: when
// an archive turns out to be unusable, the node gets these back. It normalizes names, whichever annotation of an
// archive has them.
type writtenNames struct {
	images.Store
	leases leases.Manager
	names  map[string]writtenName
}

type writtenName struct {
	previous *images.Image // nil where the name is new
	target   digest.Digest
}

func newWrittenNames(c *client.Client) *writtenNames {
	return &writtenNames{Store: c.ImageService(), leases: c.LeasesService(), names: map[string]writtenName{}}
}

// Normalize returns the name by which pods find an image of this name. The kubelet and the CRI service complete names
// in the same way: app:v1 is docker.io/library/app:v1, and a name without a tag gets :latest. The error says that no
// pod can have such a name.
func Normalize(name string) (string, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return name, err
	}
	return ref.String(), nil
}

// Update implements images.Store.
func (w *writtenNames) Update(ctx context.Context, im images.Image, fields ...string) (images.Image, error) {
	im.Name, _ = Normalize(im.Name) // Import warns of names that no pod can have
	was, err := w.Get(ctx, im.Name)
	if err != nil {
		return images.Image{}, err
	}
	// Content without a name would be collected before restore can give it its name again.
	if lease, ok := leases.FromContext(ctx); ok {
		if err := w.leases.AddResource(ctx, leases.Lease{ID: lease}, leases.Resource{ID: was.Target.Digest.String(),
			Type: "content"}); err != nil {
			return images.Image{}, fmt.Errorf("keep the previous image %s: %w", im.Name, err)
		}
	}
	w.record(im, &was)
	return w.Store.Update(ctx, im, fields...)
}

// Create implements images.Store.
func (w *writtenNames) Create(ctx context.Context, im images.Image) (images.Image, error) {
	im.Name, _ = Normalize(im.Name)
	w.record(im, nil)
	return w.Store.Create(ctx, im)
}

// record records the image that a name had before its first write: an archive may have a name twice.
func (w *writtenNames) record(im images.Image, was *images.Image) {
	if before, ok := w.names[im.Name]; ok {
		was = before.previous
	}
	w.names[im.Name] = writtenName{was, im.Target.Digest}
}

// markReady records that an image can be used: restore does not change its name.
func (w *writtenNames) markReady(im images.Image) {
	if w.names[im.Name].target == im.Target.Digest {
		delete(w.names, im.Name)
	}
}

// restore gives the names of images that are not ready their earlier images, unless another client has written them
// since.
func (w *writtenNames) restore(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for name, n := range w.names {
		now, err := w.Get(ctx, name)
		switch {
		case err != nil || now.Target.Digest != n.target:
		case n.previous != nil:
			_, err = w.Store.Update(ctx, *n.previous, "target", "labels")
		default:
			err = w.Delete(ctx, name)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("restore the previous image of the name %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
