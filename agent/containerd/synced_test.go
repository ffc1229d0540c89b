// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// recorder is an applier that records whether it was asked to flush.
type recorder struct{ flushed bool }

func (r *recorder) Apply(ctx context.Context, d ocispec.Descriptor, _ []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	var c diff.ApplyConfig
	for _, o := range opts {
		if err := o(ctx, d, &c); err != nil {
			return d, err
		}
	}
	r.flushed = c.SyncFs
	return d, nil
}

// TestLayersAreFlushedBeforeTheyCount holds both ways to a layer on the node's disk to the flushing differ: the
// transfer service names its differ, and all others (imports, pulls with credentials, ctr) ask the diff service.
// test/nodepower shows what it is for.
func TestLayersAreFlushedBeforeTheyCount(t *testing.T) {
	var r recorder
	_, err := synced{Applier: &r}.Apply(t.Context(), ocispec.Descriptor{}, nil)
	testenv.NoError(t, err)
	testenv.True(t, r.flushed, "a layer is unpacked without a flush")

	c := serverConfig(Options{Root: "/r", State: "/s"}, "native", host{}).Plugins
	service, _ := c["io.containerd.service.v1.diff-service"].(map[string]any)
	order, _ := service["default"].([]string)
	testenv.EqualSlices(t, order, []string{syncedDiffer}, "the diff service's differs are")
	unpack := c["io.containerd.transfer.v1.local"].(map[string]any)["unpack_config"].([]map[string]any)
	testenv.Equal(t, unpack[0]["differ"], any(syncedDiffer), "the transfer service's differ is")
}
