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

// criPlugin is a separate plugin type, since it has to come after the CRI service, which is a gRPC service. Nothing
// waits for it.
const criPlugin plugin.Type = "io.coracle.cri.v1"

// criService has the calls of containerd's CRI service that Calls has.
type criService interface {
	IsInitialized() bool
	PodSandboxStatus(context.Context, *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error)
	ExecSync(context.Context, *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error)
	StopContainer(context.Context, *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error)
	StopPodSandbox(context.Context, *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error)
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
	Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error)
}

// Calls serves within this process the calls that a kubelet repeats all the time, and those that end pods. Over the
// socket each of the former wakes four threads, for the readers and writers of both ends (docs/adr/0040). A machine
// that goes down needs no socket for the latter. Errors are the same as over the socket. Responses share memory with
// containerd and must not be changed.
type Calls struct{ cri criService }

// ListPodSandbox implements CRI's call of that name.
func (c Calls) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return callCRI(ctx, c.cri, c.cri.ListPodSandbox, r)
}

// ListContainers implements CRI's call of that name.
func (c Calls) ListContainers(ctx context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return callCRI(ctx, c.cri, c.cri.ListContainers, r)
}

// Status implements CRI's call of that name.
func (c Calls) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return callCRI(ctx, c.cri, c.cri.Status, r)
}

// PodSandboxStatus implements CRI's call of that name.
func (c Calls) PodSandboxStatus(ctx context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return callCRI(ctx, c.cri, c.cri.PodSandboxStatus, r)
}

// ExecSync implements CRI's call of that name.
func (c Calls) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return callCRI(ctx, c.cri, c.cri.ExecSync, r)
}

// StopContainer implements CRI's call of that name.
func (c Calls) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return callCRI(ctx, c.cri, c.cri.StopContainer, r)
}

// StopPodSandbox implements CRI's call of that name.
func (c Calls) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return callCRI(ctx, c.cri, c.cri.StopPodSandbox, r)
}

// callCRI does the same as upstream for each call over the socket.
func callCRI[Q, A any](ctx context.Context, cri criService, call func(context.Context, Q) (A, error), question Q) (A, error) {
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

// registerCRIPlugin adds a plugin of ours that receives the CRI service. It must be called before server.New, which
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
			if err := boundStreams(service); err != nil {
				return nil, fmt.Errorf("bound the connections to the port for streams: %w", err)
			}
			s.calls = &Calls{cri}
			return s.calls, nil
		},
	})
}
