// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/credentialprovider"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/images"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	imported = "example.org/imported:1"
	private  = "example.org/private:1"
)

// imageService has two images, and no registry.
type imageService struct{ kubecontainer.ImageService }

func (imageService) GetImageRef(_ context.Context, spec kubecontainer.ImageSpec) (string, error) {
	return map[string]string{imported: "sha256:imported", private: "sha256:private"}[spec.Image], nil
}

func (imageService) ListImages(context.Context) ([]kubecontainer.Image, error) {
	return []kubecontainer.Image{{ID: "sha256:imported", RepoTags: []string{imported}}, {ID: "sha256:private", RepoTags: []string{private}}}, nil
}

func (imageService) PullImage(context.Context, kubecontainer.ImageSpec, []credentialprovider.TrackedAuthConfig, *runtimeapi.PodSandboxConfig) (string, *credentialprovider.TrackedAuthConfig, error) {
	return "", nil, errors.New("there is no registry")
}

type noTimes struct{}

func (noTimes) RecordImageStartedPulling(types.UID)  {}
func (noTimes) RecordImageFinishedPulling(types.UID) {}

// puller is upstream's manager of images over upstream's manager of pulls, where a kubelet has them.
type puller struct {
	containerRuntime any
	pulls            *pullmanager.PullManager
	images           images.ImageManager
}

func newPuller(t *testing.T, dir string) *puller {
	t.Helper()
	logger := klog.Background()
	files := testenv.Must(pullmanager.NewFSPullRecordsAccessor(logger, dir))(t)
	policy := testenv.Must(pullmanager.NewImagePullCredentialVerificationPolicy(kubeletconfig.NeverVerifyPreloadedImages, nil))(t)
	records := pullmanager.NewCachedPullRecordsAccessor(logger, files, 10, 10, 10)
	pulls := testenv.Must(pullmanager.NewImagePullManager(t.Context(), records, policy, imageService{}, 10))(t)
	p := &puller{pulls: pulls}
	p.images = images.NewImageManager(record.NewFakeRecorder(1000), credentialprovider.UnionDockerKeyring{}, imageService{}, pulls,
		flowcontrol.NewBackOff(time.Second, time.Minute), false, nil, 0, 0, noTimes{})
	p.containerRuntime = &struct{ imagePuller images.ImageManager }{p.images}
	return p
}

// may says whether a pod of the tenant "other", which has no credentials, may have an image.
func (p *puller) may(t *testing.T, image string, policy v1.PullPolicy) bool {
	t.Helper()
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "pod", "other", types.UID(t.Name()+image)
	_, _, err := p.images.EnsureImageExists(t.Context(), nil, pod, image, nil, &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{}}, "", policy)
	return err == nil
}

func (p *puller) trust(t *testing.T, policy kubeletconfig.ImagePullCredentialsVerificationPolicy) {
	t.Helper()
	testenv.NoError(t, trustImported(p, string(policy), func(_ context.Context, ref string) bool { return ref == "sha256:imported" }))
}

func TestImportedImageIsAvailableToAllPods(t *testing.T) {
	// What holds an image back for other pods, as upstream does it.
	pulling := func(t *testing.T, p *puller, _ string) *puller {
		testenv.NoError(t, p.pulls.RecordPullIntent(klog.Background(), imported))
		return p
	}
	killed := func(t *testing.T, p *puller, dir string) *puller { // amid a pull, and started again
		pulling(t, p, dir)
		return newPuller(t, dir)
	}
	withSecret := func(t *testing.T, p *puller, _ string) *puller {
		testenv.NoError(t, p.pulls.RecordPullIntent(klog.Background(), imported))
		p.pulls.RecordImagePulled(t.Context(), imported, "sha256:imported", credentialsOf("tenant"))
		return p
	}
	for name, hold := range map[string]func(*testing.T, *puller, string) *puller{"being pulled": pulling, "killed while it was pulled": killed, "pulled with a Secret": withSecret} {
		for _, policy := range []v1.PullPolicy{v1.PullIfNotPresent, v1.PullNever} {
			t.Run(name+"/"+string(policy), func(t *testing.T) {
				dir := t.TempDir()
				p := hold(t, newPuller(t, dir), dir)
				testenv.Require(t, !p.may(t, imported, policy),
					"upstream does not hold the image back any more: is importedImages still needed?")
				p.trust(t, kubeletconfig.NeverVerifyPreloadedImages)
				testenv.True(t, p.may(t, imported, policy), "a pod cannot have an image that the operator imported")
			})
		}
	}
}

// A tenant's private image is for those who have its credentials, and an operator who wants imported ones verified has
// that.
func TestOtherImagesAreVerified(t *testing.T) {
	p := newPuller(t, t.TempDir())
	p.trust(t, kubeletconfig.NeverVerifyPreloadedImages)
	testenv.NoError(t, p.pulls.RecordPullIntent(klog.Background(), private))
	testenv.False(t, p.may(t, private, v1.PullIfNotPresent), "a pod without credentials has an image that is being pulled with some")
	p.pulls.RecordImagePulled(t.Context(), private, "sha256:private", credentialsOf("tenant"))
	for _, policy := range []v1.PullPolicy{v1.PullIfNotPresent, v1.PullNever} {
		testenv.False(t, p.may(t, private, policy), "%s: a pod without credentials has a private image", policy)
	}
	testenv.False(t, p.may(t, imported, v1.PullAlways), "a pod that is set to pull always did without the registry")
	for _, policy := range []kubeletconfig.ImagePullCredentialsVerificationPolicy{kubeletconfig.AlwaysVerify, kubeletconfig.NeverVerifyAllowlistedImages} {
		strict := newPuller(t, t.TempDir())
		strict.trust(t, policy)
		testenv.NoError(t, strict.pulls.RecordPullIntent(klog.Background(), imported))
		testenv.False(t, strict.may(t, imported, v1.PullIfNotPresent), "%s is not obeyed", policy)
	}
}

func credentialsOf(tenant string) *kubeletconfig.ImagePullCredentials {
	return &kubeletconfig.ImagePullCredentials{KubernetesSecrets: []kubeletconfig.ImagePullSecret{{UID: "u", Namespace: tenant, Name: "pull", CredentialHash: "hash"}}}
}

// Upstream's kubelet still begins the way to its manager of pulls as trustImported does. That the rest of the way is
// right is seen with a whole kubelet (TestOneNode/imported).
func TestWayToThePullManager(t *testing.T) {
	wayBegins[kubecontainer.Runtime](t, pullManagerFieldPath)
	for _, lost := range []any{struct{}{}, &struct{ containerRuntime int }{}, &struct{ containerRuntime kubecontainer.Runtime }{}} {
		testenv.Fails(t, trustImported(lost, string(kubeletconfig.NeverVerifyPreloadedImages), func(context.Context, string) bool { return true }), "%T has no manager of pulls, and no error", lost)
	}
}
