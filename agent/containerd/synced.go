// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// syncedDiffer is the name of the differ that unpacks all layers. It flushes each layer to the disk before the layer
// counts as unpacked: a power cut would leave empty files otherwise, and containerd's records would call them unpacked.
const syncedDiffer = "coracle-synced"

// synced is a differ of containerd. After it has unpacked a layer, it flushes the file system.
type synced struct {
	diff.Comparer
	diff.Applier
}

// Apply implements diff.Applier.
func (s synced) Apply(ctx context.Context, layer ocispec.Descriptor, mounts []mount.Mount,
	opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	return s.Applier.Apply(ctx, layer, mounts, append(opts, diff.WithSyncFs(true))...)
}

// registerSyncedDiffer registers the differ. It is made of the same parts as upstream's differ "walking", since a
// plugin cannot require another one of its own type.
func registerSyncedDiffer() {
	registry.Register(&plugin.Registration{
		Type:     plugins.DiffPlugin,
		ID:       syncedDiffer,
		Requires: []plugin.Type{plugins.MetadataPlugin, plugins.MountManagerPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			records, err := ic.GetSingle(plugins.MetadataPlugin)
			if err != nil {
				return nil, fmt.Errorf("find the metadata: %w", err)
			}
			mounts, err := ic.GetSingle(plugins.MountManagerPlugin)
			if err != nil {
				return nil, fmt.Errorf("find the mount manager: %w", err)
			}
			ic.Meta.Platforms = append(ic.Meta.Platforms, platforms.DefaultSpec())
			blobs := records.(*metadata.DB).ContentStore()
			return synced{walking.NewWalkingDiff(blobs), apply.NewFileSystemApplierWithMountManager(blobs, mounts.(mount.Manager))}, nil
		},
	})
}
