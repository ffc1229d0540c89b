// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"

	upstream "k8s.io/kubernetes/pkg/kubelet"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// importedImages is upstream's manager of image pulls (KEP 2535), except for images that the operator imported: these
// are for every pod of the node.
//
// Upstream lets a pod have an image that is there without asking its registry only when it was not pulled. It takes an
// image for pulled as soon as a pull begins, and also when nothing comes of it: then a pod that is set to pull always
// would keep all others from an image that no registry has.
type importedImages struct {
	pullmanager.ImagePullManager
	imported func(ctx context.Context, imageRef string) bool
}

// MustAttemptImagePull says whether a pod may have the image only after the registry has accepted the pod's
// credentials. imageRef is the image's content, whatever its names are.
func (m importedImages) MustAttemptImagePull(ctx context.Context, image, imageRef string,
	credentials pullmanager.GetPodCredentials) (bool, error) {
	if imageRef != "" && m.imported(ctx, imageRef) {
		return false, nil
	}
	return m.ImagePullManager.MustAttemptImagePull(ctx, image, imageRef, credentials)
}

// pullManagerAt is where a kubelet has its manager of image pulls. No function of upstream's leads there.
var pullManagerAt = []string{"containerRuntime", "imagePuller", "imagePullManager"}

// trustImported makes a kubelet that is not running yet use importedImages, unless the operator chose a policy under
// which images that were there before are verified, too.
func trustImported(kubelet any, policy string, imported func(ctx context.Context, imageRef string) bool) error {
	if imported == nil || policy != string(kubeletconfig.NeverVerifyPreloadedImages) {
		return nil
	}
	manager, err := kubecompat.Field[pullmanager.ImagePullManager](kubelet, pullManagerAt)
	if err != nil {
		return err
	}
	*manager = importedImages{*manager, imported}
	return nil
}

// trusting is trustImported for upstream's list of what is done with a new kubelet.
func trusting(policy string, imported func(ctx context.Context, imageRef string) bool, failed func(error)) upstream.Option {
	return func(k *upstream.Kubelet) {
		if err := trustImported(k, policy, imported); err != nil {
			failed(err)
		}
	}
}
