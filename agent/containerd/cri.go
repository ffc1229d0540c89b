// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criPlugin is a type of its own, since it comes after the CRI service, which is a gRPC service; nothing waits for it.
const criPlugin plugin.Type = "io.coracle.cri.v1"

// criService is the part of containerd's CRI service that Lists asks.
type criService interface {
	IsInitialized() bool
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
	Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error)
}

// Lists answers the questions that a kubelet asks all the time, by a call in this process. Over the socket each of them
// wakes four threads, for both ends' readers and writers (docs/adr/0040). Errors are as over the socket. Parts of an
// answer are containerd's own, and are not to be changed.
type Lists struct{ cri criService }

// ListPodSandbox is CRI's.
func (l Lists) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return ask(ctx, l.cri, l.cri.ListPodSandbox, r)
}

// ListContainers is CRI's.
func (l Lists) ListContainers(ctx context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return ask(ctx, l.cri, l.cri.ListContainers, r)
}

// Status is CRI's.
func (l Lists) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return ask(ctx, l.cri, l.cri.Status, r)
}

// ask does what upstream does with each call that comes by the socket.
func ask[Q, A any](ctx context.Context, cri criService, call func(context.Context, Q) (A, error), question Q) (A, error) {
	var none A
	if err := ctx.Err(); err != nil { // the service does not check
		return none, status.FromContextError(err).Err()
	}
	if !cri.IsInitialized() {
		return none, status.Error(codes.Unavailable, "containerd is starting: its CRI service is not initialized yet")
	}
	answer, err := call(namespaces.WithNamespace(ctx, Namespace), question)
	if err != nil {
		return none, errgrpc.ToGRPC(err)
	}
	return answer, nil
}

// registerCRIPlugin adds a plugin of ours that is handed the CRI service. It must be called before server.New, which
// builds the plugin graph.
func registerCRIPlugin(s *Server) {
	registry.Register(&plugin.Registration{
		Type:     criPlugin,
		ID:       "coracle",
		Requires: []plugin.Type{plugins.GRPCPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			service, err := ic.GetByID(plugins.GRPCPlugin, "cri")
			if err != nil {
				return nil, fmt.Errorf("find the CRI service: %w", err)
			}
			cri, ok := service.(criService)
			if !ok {
				return nil, fmt.Errorf("the CRI service %T can no longer be called within this process", service)
			}
			s.lists = &Lists{cri}
			return s.lists, nil
		},
	})
}
