// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"

	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// importedImages is upstream's manager of image pulls (KEP 2535), except for images that the operator imported: every
// pod of the node may use these.
//
// Upstream lets a pod use a present image without asking its registry only when the image was not pulled. It considers
// an image pulled as soon as a pull begins, even if the pull fails. So a pod that is set to pull always would keep all
// others from an image that no registry has.
type importedImages struct {
	pullmanager.ImagePullManager
	imported func(ctx context.Context, imageRef string) bool
}

// MustAttemptImagePull reports whether a pod may use the image only after the registry has accepted the pod's
// credentials. imageRef identifies the image's content, whatever its names are.
func (m importedImages) MustAttemptImagePull(ctx context.Context, image, imageRef string,
	credentials pullmanager.GetPodCredentials) (bool, error) {
	if imageRef != "" && m.imported(ctx, imageRef) {
		return false, nil
	}
	return m.ImagePullManager.MustAttemptImagePull(ctx, image, imageRef, credentials)
}

// pullManagerFieldPath is the path of the field with a kubelet's manager of image pulls. Upstream has no function that
// returns it.
var pullManagerFieldPath = []string{"containerRuntime", "imagePuller", "imagePullManager"}

// trustImported makes a kubelet that is not running yet use importedImages, unless the operator chose a policy under
// which images that were present before are verified, too.
func trustImported(kubelet any, policy string, imported func(ctx context.Context, imageRef string) bool) error {
	if imported == nil || policy != string(kubeletconfig.NeverVerifyPreloadedImages) {
		return nil
	}
	manager, err := kubecompat.Field[pullmanager.ImagePullManager](kubelet, pullManagerFieldPath)
	if err != nil {
		return err
	}
	*manager = importedImages{*manager, imported}
	return nil
}
