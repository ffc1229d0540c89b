// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"

	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// remoteImages is the image service with which the kubelet finds out whether an image is present. An image that is not,
// and that a server has imported, is fetched first, so it counts as present on each node. The kubelet does not ask for
// an image that a pod always pulls.
type remoteImages struct {
	kubecontainer.ImageService
	fetch func(ctx context.Context, image string) bool
}

// GetImageRef returns the digest of an image's configuration, or an empty text if this node has no such image and no
// server has imported one.
func (m remoteImages) GetImageRef(ctx context.Context, image kubecontainer.ImageSpec) (string, error) {
	ref, err := m.ImageService.GetImageRef(ctx, image)
	if err != nil || ref != "" || !m.fetch(ctx, image.Image) {
		return ref, err
	}
	return m.ImageService.GetImageRef(ctx, image)
}

// presenceFieldPath is the path of the field with the image service that a kubelet asks whether an image is present.
// Upstream has no function that returns it.
var presenceFieldPath = []string{"containerRuntime", "imagePuller", "imageService"}

// fetchRemoteImages makes a kubelet that is not running yet use remoteImages. It does nothing if fetch is nil.
func fetchRemoteImages(kubelet any, fetch func(ctx context.Context, image string) bool) error {
	if fetch == nil {
		return nil
	}
	service, err := kubecompat.Field[kubecontainer.ImageService](kubelet, presenceFieldPath)
	if err != nil {
		return err
	}
	*service = remoteImages{*service, fetch}
	return nil
}
