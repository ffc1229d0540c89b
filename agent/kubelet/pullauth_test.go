// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// pulls is an image service that returns the user of a pull as the reference of its image.
type pulls struct {
	runtimeapi.UnimplementedImageServiceServer
}

func (pulls) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return &runtimeapi.PullImageResponse{ImageRef: "user " + r.GetAuth().GetUsername()}, nil
}

func (pulls) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}

// A pull without credentials of the pod gets those of the registries' file, and no other pull.
func TestPullsGetCredentialsOfRegistries(t *testing.T) {
	socket := t.TempDir() + "/images.sock"
	l := testenv.Must(net.Listen("unix", socket))(t)
	s := grpc.NewServer()
	runtimeapi.RegisterImageServiceServer(s, pulls{})
	served := make(chan error, 1) // one: the test may have failed already
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Stop()
		testenv.Check(t, <-served)
	}()
	service := testenv.Must(
		remote.NewRemoteImageServiceBuilder().WithEndpoint(runtimeEndpoint(socket)).WithConnectionTimeout(time.Minute).Build(t.Context()))(t)
	type instrumented struct {
		service internalapi.ImageManagerService
	}
	type manager struct{ imageService any }
	k := &struct{ containerRuntime any }{&manager{instrumented{service}}}
	testenv.NoError(t, useRegistryAuth(k, func(image string) *runtimeapi.AuthConfig {
		if image == "known.example.org/app" {
			return nil
		}
		return &runtimeapi.AuthConfig{Username: "any"}
	}))
	for image, want := range map[string]string{"other.example.org/app": "user any", "known.example.org/app": "user "} {
		got, err := service.PullImage(t.Context(), &runtimeapi.ImageSpec{Image: image}, nil, nil)
		testenv.True(t, err == nil && got == want, "%s is pulled as %q, %v", image, got, err)
	}
	got, err := service.PullImage(t.Context(), &runtimeapi.ImageSpec{Image: "other.example.org/app"}, &runtimeapi.AuthConfig{Username: "pod"}, nil)
	testenv.True(t, err == nil && got == "user pod", "with the pod's own credentials it is %q, %v", got, err)
}

// Upstream's kubelet still has its runtime where useRegistryAuth begins.
func TestWayToTheImageClient(t *testing.T) {
	wayBegins[kubecontainer.Runtime](t, imageClientFieldPath)
	testenv.Fails(t, useRegistryAuth(&struct{ containerRuntime int }{}, func(string) *runtimeapi.AuthConfig { return nil }), "there is no client, and no error")
}
