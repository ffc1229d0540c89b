// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// pullingClient is a client of the runtime's image service. It adds the credentials of auth to pulls that have none.
type pullingClient struct {
	runtimeapi.ImageServiceClient
	auth func(image string) *runtimeapi.AuthConfig
}

// PullImage implements runtimeapi.ImageServiceClient.
func (c pullingClient) PullImage(ctx context.Context, in *runtimeapi.PullImageRequest,
	opts ...grpc.CallOption) (*runtimeapi.PullImageResponse, error) {
	if in.GetAuth() == nil {
		in.Auth = c.auth(in.GetImage().GetImage())
	}
	return c.ImageServiceClient.PullImage(ctx, in, opts...)
}

// imageClientFieldPath is the path of the field with a kubelet's client of the image service. Upstream has no function
// that returns it.
var imageClientFieldPath = []string{"containerRuntime", "imageService", "service", "imageClient"}

// useRegistryAuth makes a kubelet that is not running yet use a pullingClient. After an error the kubelet is unchanged.
func useRegistryAuth(kubelet any, auth func(image string) *runtimeapi.AuthConfig) error {
	if auth == nil {
		return nil
	}
	client, err := kubecompat.Field[runtimeapi.ImageServiceClient](kubelet, imageClientFieldPath)
	if err != nil {
		return err
	}
	*client = pullingClient{*client, auth}
	return nil
}
