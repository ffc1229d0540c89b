// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// archiveLabel is a label of an image's name: the archive from which it was imported, and the device of the folder.
	archiveLabel = "coracle/archive"
	// unpinAfter is how long an archive has to be missing, or to be without an image's name, before the image's pin
	// goes.
	unpinAfter = 10 * time.Minute
)

// Origin says from which archive an image's name was imported, or from which server it was fetched. The zero value is
// an unknown origin.
type Origin struct {
	// Device is the device of the images folder then. The folder may be the mount point of another one.
	Device uint64
	// Archive is the name of the file.
	Archive string
	// Server is the server that published the image. Device and Archive are empty then.
	Server string
}

func (o Origin) String() string {
	if o.Archive == "" {
		return ""
	}
	return strconv.FormatUint(o.Device, 16) + "/" + o.Archive
}

func parseOrigin(text string) Origin {
	device, archive, _ := strings.Cut(text, "/")
	n, err := strconv.ParseUint(device, 16, 64)
	if err != nil {
		return Origin{}
	}
	return Origin{Device: n, Archive: archive}
}

// labels returns the labels of the names that are imported from an archive.
func (o Origin) labels() map[string]string {
	out := map[string]string{pinnedLabel: pinnedValue}
	if o.Archive != "" {
		out[archiveLabel] = o.String()
	}
	return out
}

// Pinned implements Store.
func (s Containerd) Pinned(ctx context.Context) (map[string]Origin, error) {
	ctx = namespaces.WithNamespace(ctx, s.Namespace)
	all, err := s.Client.ImageService().List(ctx, fmt.Sprintf("labels.%q==%s", pinnedLabel, pinnedValue))
	if err != nil {
		return nil, fmt.Errorf("list imported images: %w", err)
	}
	out := map[string]Origin{}
	for _, im := range all {
		out[im.Name] = parseOrigin(im.Labels[archiveLabel])
		if server := im.Labels[serverLabel]; server != "" {
			out[im.Name] = Origin{Server: server}
		}
	}
	return out, nil
}

// SetOrigin implements Store.
func (s Containerd) SetOrigin(ctx context.Context, name string, from Origin) error {
	return s.relabel(ctx, name, from.labels())
}

// Unpin implements Store.
func (s Containerd) Unpin(ctx context.Context, name string) error {
	if err := s.relabel(ctx, name, nil); err != nil || s.NotifyImageAdded == nil {
		return err
	}
	if err := s.NotifyImageAdded(ctx, name); err != nil { // the CRI service reads the pin again
		return fmt.Errorf("announce image %s: %w", name, err)
	}
	return nil
}

// relabel replaces the labels of a name that this package sets. It does nothing if the name is gone.
func (s Containerd) relabel(ctx context.Context, name string, to map[string]string) error {
	im := images.Image{Name: name, Labels: to}
	_, err := s.Client.ImageService().Update(namespaces.WithNamespace(ctx, s.Namespace), im, "labels."+pinnedLabel, "labels."+archiveLabel,
		"labels."+serverLabel)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("label image %s: %w", name, err)
	}
	return nil
}

// settlePins gives the images of the folder's archives their origin, and takes the pin of those that no archive has any
// more. It returns when it has to be called again; the zero time means that only a change of the folder makes it
// necessary. now has to be monotonic: setting the clock has no effect.
func (f *Folder) settlePins(ctx context.Context, now time.Time) time.Time {
	if f.Remote != nil {
		f.Remote.Unpin(ctx)
	}
	next, err := f.trySettlePins(ctx, now)
	if err != nil && ctx.Err() == nil {
		clear(f.orphanedImages) // an archive counts as missing from when the folder is readable again
		f.Logger.Warn("images: the archives cannot be compared with the imported images, which stay as they are; retrying", "error", err)
		return now.Add(unpinAfter)
	}
	return next
}

func (f *Folder) trySettlePins(ctx context.Context, now time.Time) (next time.Time, err error) {
	files, err := f.archives()
	if err != nil {
		return next, err
	}
	device, err := deviceOf(f.Dir)
	if err != nil {
		return next, err
	}
	pinned, err := f.Store.Pinned(ctx)
	if err != nil {
		return next, err
	}
	present := map[string]bool{}
	for _, name := range files {
		present[name] = true
	}
	for image, was := range pinned {
		from, wanted := f.archiveOf(image, was.Archive, present)
		switch {
		case wanted:
			delete(f.orphanedImages, image)
			if origin := (Origin{Device: device, Archive: from}); origin != was {
				err = f.Store.SetOrigin(ctx, image, origin)
			}
		case was.Archive == "", was.Device != device, present[was.Archive] && f.index[was.Archive].SHA256 == "":
			delete(f.orphanedImages, image) // of unknown origin, or from a server; on another disk; of an archive that could not be read
		case f.orphanedImages[image].IsZero():
			f.orphanedImages[image] = now
		case now.Sub(f.orphanedImages[image]) >= unpinAfter:
			f.Logger.Info("images: no archive has this image any more: it is removed when no pod uses it and disk space is short",
				"image", image, "archive", was.Archive)
			err = f.Store.Unpin(ctx, image)
			delete(f.orphanedImages, image)
		}
		if err != nil {
			return next, err
		}
		if since := f.orphanedImages[image]; !since.IsZero() && (next.IsZero() || since.Add(unpinAfter).Before(next)) {
			next = since.Add(unpinAfter)
		}
	}
	for image := range f.orphanedImages {
		if _, ok := pinned[image]; !ok {
			delete(f.orphanedImages, image) // it was removed by hand
		}
	}
	return next, nil
}

// archiveOf returns a present archive that has the image. It prefers the archive named before.
func (f *Folder) archiveOf(image, before string, present map[string]bool) (archive string, ok bool) {
	for name, e := range f.index {
		if present[name] && e.hasImage(image) && (archive == "" || name == before || archive != before && name < archive) {
			archive = name
		}
	}
	return archive, archive != ""
}

func deviceOf(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("images: look at the images folder: %w", err)
	}
	return st.Dev, nil
}
