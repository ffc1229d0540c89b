// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/credentialprovider"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/images"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// fetchedImages is a node that has no image at first, and no registry.
type fetchedImages struct {
	imageService
	present []string
	asked   []string // what was fetched, or was not found
	failing error    // of GetImageRef
}

func (f *fetchedImages) GetImageRef(_ context.Context, spec kubecontainer.ImageSpec) (string, error) {
	if slices.Contains(f.present, spec.Image) {
		return "sha256:" + spec.Image, nil
	}
	return "", f.failing
}

// fetch stands for servers that have imported one image.
func (f *fetchedImages) fetch(_ context.Context, image string) bool {
	f.asked = append(f.asked, image)
	if image == imported {
		f.present = append(f.present, image)
	}
	return image == imported
}

// kubeletWith returns upstream's manager of images over a service, where a kubelet has it.
func kubeletWith(t *testing.T, service kubecontainer.ImageService) *puller {
	t.Helper()
	logger := klog.Background()
	files := testenv.Must(pullmanager.NewFSPullRecordsAccessor(logger, t.TempDir()))(t)
	policy := testenv.Must(pullmanager.NewImagePullCredentialVerificationPolicy(kubeletconfig.NeverVerifyPreloadedImages, nil))(t)
	pulls := testenv.Must(pullmanager.NewImagePullManager(t.Context(), pullmanager.NewCachedPullRecordsAccessor(logger, files, 10, 10, 10), policy, service, 10))(t)
	p := &puller{pulls: pulls}
	p.images = images.NewImageManager(record.NewFakeRecorder(1000), credentialprovider.UnionDockerKeyring{}, service, pulls,
		flowcontrol.NewBackOff(time.Second, time.Minute), false, nil, 0, 0, noTimes{})
	p.containerRuntime = &struct{ imagePuller images.ImageManager }{p.images}
	return p
}

func TestImageOfAServerCountsAsPresent(t *testing.T) {
	for _, policy := range []v1.PullPolicy{v1.PullIfNotPresent, v1.PullNever} {
		node := &fetchedImages{}
		p := kubeletWith(t, node)
		testenv.Require(t, !p.may(t, imported, policy), "%s: the image is present before anything fetches it", policy)
		testenv.NoError(t, fetchRemoteImages(p, node.fetch))
		testenv.True(t, p.may(t, imported, policy), "%s: a pod cannot have an image that a server has imported", policy)
		testenv.True(t, p.may(t, imported, policy), "%s: another pod cannot have it", policy)
		testenv.Equal(t, len(node.asked), 1, "%s: servers were asked, though the image is present; questions:", policy)
		testenv.False(t, p.may(t, "example.org/other:1", policy), "%s: a pod has an image that neither a server nor a registry has", policy)
	}
}

func TestServersAreNotAskedForWhatIsAlwaysPulled(t *testing.T) {
	node := &fetchedImages{}
	p := kubeletWith(t, node)
	testenv.NoError(t, fetchRemoteImages(p, node.fetch))
	testenv.False(t, p.may(t, imported, v1.PullAlways), "a pod that is set to pull always did without the registry")
	node.failing = errors.New("containerd does not answer")
	testenv.False(t, p.may(t, imported, v1.PullIfNotPresent), "a node that cannot be asked has the image")
	testenv.Equal(t, len(node.asked), 0, "servers were asked:")
}

func TestWayToTheImageService(t *testing.T) {
	wayBegins[kubecontainer.Runtime](t, presenceFieldPath)
	for _, lost := range []any{struct{}{}, &struct{ containerRuntime int }{}, &struct{ containerRuntime kubecontainer.Runtime }{}} {
		testenv.Fails(t, fetchRemoteImages(lost, (&fetchedImages{}).fetch), "%T has no image service, and no error", lost)
	}
	testenv.NoError(t, fetchRemoteImages(struct{}{}, nil))
}
