// SPDX-License-Identifier: Apache-2.0

// Package images imports images into the node's image store without a registry: the pause image embedded in coracle,
// archives that the operator puts into the images folder, and images that a server has imported from its folder.
//
// It owns the index of imported archives, and the pins of their images. It never removes an image. The kubelet's
// garbage collection leaves images alone as long as their archive is there, because they could not be fetched again.
// When the archive has been gone for a while, the operator does not want them any more, and the collection may take
// them.
//
// Its goroutines: one for each server that is asked for an image, which ends within a second; those of containerd's
// client while it fetches an image.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
)

// This label makes the CRI service report an image as pinned to the kubelet, which then does not collect it.
const (
	pinnedLabel = "io.cri-containerd.pinned"
	pinnedValue = "pinned"
)

// importedLabel is a label of the configuration of each image that came completely from an archive. It is a label of
// content, not of a name: a name may belong to a tenant's image later. Content stays what the operator imported, and
// its label is removed with it. The value is the time of the import in RFC 3339; it is "true" for an import by an
// earlier version, and for an image that was fetched from a server.
const importedLabel = "coracle/imported"

// Store imports images on the node, and pins those from archives so that they are not collected.
type Store interface {
	// Import reads one archive (docker-archive or OCI layout; plain, gzip or zstd) and returns the names of its images,
	// which can be run when it returns. fallback is the name of an image for which the archive has only a tag, or no
	// name. The images are pinned, and from is recorded as their origin.
	Import(ctx context.Context, r io.Reader, fallback string, from Origin) ([]string, error)
	// Pinned returns the names of the images that are not collected, with their origins.
	Pinned(ctx context.Context) (map[string]Origin, error)
	// SetOrigin records the origin of a pinned image. Unpin lets the image be collected. Both do nothing if there is no
	// such image.
	SetOrigin(ctx context.Context, name string, from Origin) error
	Unpin(ctx context.Context, name string) error
	// Complete reports whether the store has an image of that name with all that a container of it needs on this
	// machine.
	Complete(ctx context.Context, name string) (bool, error)
}

// Containerd implements Store with containerd.
type Containerd struct {
	Client *client.Client
	// Namespace is the containerd namespace of the images.
	Namespace string
	// Snapshotter unpacks the layers.
	Snapshotter string
	// NotifyImageAdded notifies the CRI service of a new image name. Without it the service learns of it by an event, a
	// moment later.
	NotifyImageAdded func(ctx context.Context, name string) error
	// Logger receives warnings about imported images that will hardly run.
	Logger *slog.Logger
}

// Import implements Store.
func (s Containerd) Import(ctx context.Context, r io.Reader, fallback string, from Origin) (names []string, err error) {
	ctx = namespaces.WithNamespace(ctx, s.Namespace)
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	defer plain.Close()
	// The lease protects imported content from collection until an image refers to it.
	ctx, done, err := s.Client.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("take a lease: %w", err)
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }() // it would expire by itself

	written := newWrittenNames(s.Client)
	defer func() {
		if err != nil {
			err = errors.Join(err, written.restore(ctx), s.Clean(ctx))
		}
	}()
	imported, blobs, err := s.read(ctx, plain, fallback, from, written)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("it is cut off, or no archive of images at all: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if len(imported) == 0 {
		return nil, errors.New("the archive names no image; save it with a name and a tag, as `docker save NAME:TAG` does")
	}
	for _, im := range imported {
		if err := s.ready(ctx, im, blobs); err != nil {
			return names, err
		}
		written.markReady(im)
		names = append(names, im.Name)
	}
	return names, nil
}

// read imports an archive's images into the store. It writes their names through names, and returns which content the
// archive had.
func (s Containerd) read(ctx context.Context, plain io.Reader, fallback string, from Origin,
	names images.Store) ([]images.Image, *heldBlobs, error) {
	blobs := &heldBlobs{Store: s.Client.ContentStore()}
	importer, err := blobs.importer(s.Client, names)
	if err != nil {
		return nil, nil, err
	}
	imported, err := importer.Import(ctx, plain,
		client.WithImageRefTranslator(func(ref string) string { return refName(ref, fallback) }),
		client.WithImportPlatform(platforms.Default()),
		client.WithSkipMissing(), // archives of multi-platform images often hold one platform's files
		client.WithImageLabels(from.labels()),
	)
	return imported, blobs, err
}

// Clean removes incomplete content that a failed or killed import has left. containerd names it by the file's position
// in the archive, and would take it for the beginning of the next archive's file with the same position.
func (s Containerd) Clean(ctx context.Context) error {
	ctx = namespaces.WithNamespace(context.WithoutCancel(ctx), s.Namespace)
	half, err := s.Client.ContentStore().ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("list half-written content: %w", err)
	}
	var errs []error
	for _, h := range half {
		if !strings.HasPrefix(h.Ref, "tar-") { // pulls use other names, and can be resumed
			continue
		}
		if err := s.Client.ContentStore().Abort(ctx, h.Ref); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove half-written content: %w", err))
		}
	}
	return errors.Join(errs...)
}

// ready unpacks the image, so that its first container starts at once, and notifies the CRI service.
func (s Containerd) ready(ctx context.Context, im images.Image, blobs *heldBlobs) error {
	err := client.NewImageWithPlatform(s.Client, im, platforms.Default()).Unpack(ctx, s.Snapshotter)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("image %s is not for this machine (%s) or its archive is incomplete: %w", im.Name, platforms.DefaultString(), err)
	}
	if err != nil {
		return fmt.Errorf("unpack image %s: %w", im.Name, err)
	}
	if err := s.label(ctx, im, blobs); err != nil {
		return err
	}
	s.warnForeign(ctx, im)
	if _, err := Normalize(im.Name); err != nil && s.Logger != nil {
		s.Logger.Warn("images: no pod can name this image; create the archive again with a name such as example.org/app:v1",
			"image", im.Name, "error", err)
	}
	if s.NotifyImageAdded != nil {
		if err := s.NotifyImageAdded(ctx, im.Name); err != nil {
			return fmt.Errorf("announce image %s: %w", im.Name, err)
		}
	}
	return nil
}

// label labels the image as imported if all of it came from an archive.
func (s Containerd) label(ctx context.Context, im images.Image, blobs *heldBlobs) error {
	config, whole, err := blobs.isComplete(ctx, im)
	if errdefs.IsNotFound(err) {
		return nil // for another kind of machine: warnForeign logs it
	}
	if errors.Is(err, errOtherLayer) {
		return fmt.Errorf("image %s was not imported, other images on the node are unchanged; create the archive again: %w", im.Name, err)
	}
	if err == nil && !whole {
		if s.Logger != nil {
			s.Logger.Warn("images: the archive lacks content of an image, which the node already had: pods that may not pull the image may not "+
				"use it", "image", im.Name)
		}
		return nil
	}
	if err == nil {
		err = s.labelConfig(ctx, config, time.Now().UTC().Format(time.RFC3339))
	}
	if err != nil {
		return fmt.Errorf("mark image %s as imported: %w", im.Name, err)
	}
	return nil
}

// labelConfig labels the configuration of an image as imported.
func (s Containerd) labelConfig(ctx context.Context, config digest.Digest, value string) error {
	_, err := s.Client.ContentStore().Update(ctx, content.Info{Digest: config, Labels: map[string]string{importedLabel: value}},
		"labels."+importedLabel)
	return err
}

// Imported reports whether the content of an image, by the digest of its configuration, came from an archive. It
// returns false if that cannot be found out.
func (s Containerd) Imported(ctx context.Context, imageRef string) bool {
	info, err := s.Client.ContentStore().Info(namespaces.WithNamespace(ctx, s.Namespace), digest.Digest(imageRef))
	return err == nil && info.Labels[importedLabel] != ""
}

// warnForeign logs that an image is for another kind of machine. The image is kept: the host may have an emulator for
// it.
func (s Containerd) warnForeign(ctx context.Context, im images.Image) {
	is, err := images.Platforms(ctx, s.Client.ContentStore(), im.Target)
	if err != nil || len(is) == 0 || slices.ContainsFunc(is, platforms.Default().Match) || s.Logger == nil {
		return
	}
	s.Logger.Warn("images: an image is for another kind of machine, its containers will not start without an emulator",
		"image", im.Name, "for", platforms.Format(is[0]), "here", platforms.DefaultString())
}

// refName completes a reference of an OCI layout. It may be a full name or, as the specification suggests, a tag alone.
func refName(ref, fallback string) string {
	if strings.ContainsAny(ref, "/:@") {
		return ref
	}
	return fallback + ":" + ref
}

// FallbackName returns the image name made from an archive's file name: "apps/web.tar.gz" gives docker.io/library/web.
func FallbackName(file string) string {
	name := strings.ToLower(path.Base(file))
	for _, ext := range extensions {
		name = strings.TrimSuffix(name, ext)
	}
	name = strings.Map(func(r rune) rune {
		if (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9') || r == '-' || r == '_' || r == '.' {
			return r
		}
		return '-'
	}, name)
	return "docker.io/library/" + strings.Trim(name, "-_.")
}
