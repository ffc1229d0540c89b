// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/cmd/kubelet/app/options"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// Lists has the calls that a kubelet repeats all the time: every second for the pods' life cycle, every two seconds for
// garbage collection, and every five seconds to check whether the runtime works.
type Lists interface {
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
	Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error)
}

// listingClient calls the runtime over its socket, except for Lists.
type listingClient struct {
	runtimeapi.RuntimeServiceClient
	lists Lists
}

// ListPodSandbox implements runtimeapi.RuntimeServiceClient.
func (c listingClient) ListPodSandbox(ctx context.Context, in *runtimeapi.ListPodSandboxRequest,
	_ ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return c.lists.ListPodSandbox(ctx, in)
}

// ListContainers implements runtimeapi.RuntimeServiceClient.
func (c listingClient) ListContainers(ctx context.Context, in *runtimeapi.ListContainersRequest,
	_ ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return c.lists.ListContainers(ctx, in)
}

// Status implements runtimeapi.RuntimeServiceClient.
func (c listingClient) Status(ctx context.Context, in *runtimeapi.StatusRequest, _ ...grpc.CallOption) (*runtimeapi.StatusResponse, error) {
	return c.lists.Status(ctx, in)
}

// lists returns nil where the operator's flags make the kubelet use another runtime.
func (o Options) lists(server *options.KubeletServer) Lists {
	if !o.uses(server) {
		return nil
	}
	return o.Lists
}

// clientFieldPath is the path of the field with a kubelet's client of the runtime. Upstream has no function that
// returns it.
var clientFieldPath = []string{"runtimeService", "runtimeClient"}

// useInProcessClient makes a kubelet that is not running yet use a listingClient. After an error the kubelet is
// unchanged.
func useInProcessClient(kubelet any, lists Lists) error {
	if lists == nil {
		return nil
	}
	client, err := clientOf(kubelet)
	if err != nil {
		return err
	}
	*client = listingClient{*client, lists}
	return nil
}

// clientOf returns where a kubelet has its client of the runtime.
func clientOf(kubelet any) (*runtimeapi.RuntimeServiceClient, error) {
	return kubecompat.Field[runtimeapi.RuntimeServiceClient](kubelet, clientFieldPath)
}
