// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Complete implements Store.
func (s Containerd) Complete(ctx context.Context, name string) (bool, error) {
	ctx = namespaces.WithNamespace(ctx, s.Namespace)
	im, err := s.Client.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up image %s: %w", name, err)
	}
	stored, unpacked, err := s.state(ctx, im)
	if err != nil {
		return false, fmt.Errorf("check image %s: %w", name, err)
	}
	return stored && unpacked, nil
}

// state reports whether all content of an image for this machine is there, and whether it is unpacked. Both are false
// without the manifest or the configuration.
func (s Containerd) state(ctx context.Context, im images.Image) (stored, unpacked bool, err error) {
	_, _, _, missing, err := images.Check(ctx, s.Client.ContentStore(), im.Target, platforms.Default())
	if err != nil {
		return false, false, err
	}
	unpacked, err = client.NewImageWithPlatform(s.Client, im, platforms.Default()).IsUnpacked(ctx, s.Snapshotter)
	if errdefs.IsNotFound(err) {
		return false, false, nil
	}
	return len(missing) == 0, unpacked, err
}

// DropLost removes the records of content whose file is gone: with them no import and no pull would write it again. It
// also removes the names of images that cannot run without that content, so that the kubelet pulls them, and the import
// of archives imports them.
func (s Containerd) DropLost(ctx context.Context) error {
	ctx = namespaces.WithNamespace(ctx, s.Namespace)
	blobs := s.Client.ContentStore()
	var lost []digest.Digest
	err := blobs.Walk(ctx, func(info content.Info) error {
		r, err := blobs.ReaderAt(ctx, ocispec.Descriptor{Digest: info.Digest, Size: info.Size})
		if errdefs.IsNotFound(err) {
			lost = append(lost, info.Digest)
			return nil
		}
		if err != nil {
			return err
		}
		return r.Close()
	})
	if err != nil {
		return fmt.Errorf("look for lost content: %w", err)
	}
	if len(lost) == 0 {
		return nil
	}
	var errs []error
	for _, d := range lost {
		if err := blobs.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove the record of lost content %s: %w", d, err))
		}
	}
	return errors.Join(append(errs, s.dropUnusable(ctx))...)
}

// dropUnusable removes the names of images that are neither unpacked nor can be.
func (s Containerd) dropUnusable(ctx context.Context) error {
	all, err := s.Client.ImageService().List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	var errs []error
	for _, im := range all {
		stored, unpacked, err := s.state(ctx, im)
		if err != nil || stored || unpacked {
			errs = append(errs, err)
			continue
		}
		if s.Logger != nil {
			s.Logger.Warn("images: the files of an image are lost, it is imported or pulled again", "image", im.Name)
		}
		if err := s.Client.ImageService().Delete(ctx, im.Name); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove image %s, whose content is lost: %w", im.Name, err))
		} else if s.NotifyImageAdded != nil {
			errs = append(errs, s.NotifyImageAdded(ctx, im.Name))
		}
	}
	return errors.Join(errs...)
}
