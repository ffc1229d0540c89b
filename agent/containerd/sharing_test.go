// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestOnlyLayersAndConfigurationsAreShared: manifests, layers that may not be distributed, and anything without a size
// or a SHA-256 digest come from registries alone.
func TestOnlyLayersAndConfigurationsAreShared(t *testing.T) {
	d := digest.FromString("blob")
	for _, c := range []struct {
		ref, mediaType string
		digest         digest.Digest
		size           int64
		want           bool
	}{
		{"layer-", ocispec.MediaTypeImageLayerGzip, d, 1, true},
		{"layer-", images.MediaTypeDockerSchema2LayerGzip, d, 1, true},
		{"config-", ocispec.MediaTypeImageConfig, d, 1, true},
		{"config-", images.MediaTypeDockerSchema2Config, d, 1, true},
		{"layer-", ocispec.MediaTypeImageManifest, d, 1, false},
		{"config-", ocispec.MediaTypeImageIndex, d, 1, false},
		{"manifest-", ocispec.MediaTypeImageManifest, d, 1, false},
		{"manifest-", ocispec.MediaTypeImageConfig, d, 1, false},
		{"index-", ocispec.MediaTypeImageIndex, d, 1, false},
		{"layer-", images.MediaTypeDockerSchema2LayerForeignGzip, d, 1, false},
		{"layer-", ocispec.MediaTypeImageLayerNonDistributableGzip, d, 1, false}, //nolint:staticcheck // images still have it
		{"layer-", "", d, 1, false},
		{"layer-", ocispec.MediaTypeImageLayer, "", 1, false},
		{"layer-", ocispec.MediaTypeImageLayer, digest.SHA512.FromString("blob"), 1, false},
		{"layer-", ocispec.MediaTypeImageLayer, "sha256:../../x", 1, false},
		{"layer-", ocispec.MediaTypeImageLayer, d, 0, false},
		{"layer-", ocispec.MediaTypeImageLayer, d, -1, false},
	} {
		got := isShared(c.ref+c.digest.String(), ocispec.Descriptor{MediaType: c.mediaType, Digest: c.digest, Size: c.size})
		testenv.Equal(t, got, c.want, "%s", c.ref+" "+c.mediaType+" "+c.digest.String())
	}
}
