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
	"k8s.io/kubernetes/cmd/kubelet/app/options"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// someRuntime answers with its name.
type someRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	name string
}

func (r someRuntime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: r.name, RuntimeName: r.name, RuntimeVersion: r.name, RuntimeApiVersion: r.name}, nil
}

func (r someRuntime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: r.name}}}, nil
}

func (r someRuntime) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{Id: r.name}}}, nil
}

func (r someRuntime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: "RuntimeReady", Reason: r.name}, {Type: "NetworkReady", Reason: r.name},
	}}}, nil
}

// Upstream's client of a runtime asks in this process what it asks all the time, and the rest over the socket.
func TestListsWithoutTheSocket(t *testing.T) {
	socket := t.TempDir() + "/runtime.sock"
	l := testenv.Must(net.Listen("unix", socket))(t)
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, someRuntime{name: "socket"})
	served := make(chan error, 1) // one: the test may have failed already
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Stop()
		testenv.Check(t, <-served)
	}()
	service := testenv.Must(
		remote.NewRemoteRuntimeServiceBuilder().WithEndpoint(runtimeEndpoint(socket)).WithConnectionTimeout(time.Minute).Build(t.Context()))(t)
	k := &struct{ runtimeService internalapi.RuntimeService }{service}
	testenv.NoError(t, useInProcessClient(k, nil))
	testenv.Equal(t, testenv.Must(service.ListPodSandbox(t.Context(), nil))(t)[0].Id, "socket", "without lists in this process:")
	testenv.NoError(t, useInProcessClient(k, someRuntime{name: "process"}))
	pods, err := service.ListPodSandbox(t.Context(), nil)
	testenv.False(t, err != nil || pods[0].Id != "process", "pods: %v, %v", pods, err)
	containers, err := service.ListContainers(t.Context(), nil)
	testenv.False(t, err != nil || containers[0].Id != "process", "containers: %v, %v", containers, err)
	status, err := service.Status(t.Context(), false)
	testenv.False(t, err != nil || status.Status.Conditions[0].Reason != "process", "status: %v, %v", status, err)
	testenv.Equal(t, testenv.Must(service.Version(t.Context(), "v1"))(t).RuntimeName, "socket", "version:")
}

// An operator may send the kubelet to another runtime, whose pods only that one knows.
func TestListsAreOurRuntimes(t *testing.T) {
	o := Options{RuntimeSocket: "/run/ours.sock", Lists: someRuntime{}}
	server := &options.KubeletServer{}
	server.ContainerRuntimeEndpoint = "unix:///run/ours.sock"
	testenv.True(t, o.lists(server) != nil, "our own runtime is asked over its socket")
	server.ContainerRuntimeEndpoint = "unix:///run/crio/crio.sock"
	testenv.True(t, o.lists(server) == nil, "our own runtime is asked about another one's pods")
	testenv.False(t, o.uses(server), "our own runtime is asked to stop another one's pods")
}

// Upstream's kubelet still begins the way to its client as useInProcessClient does; the rest of it is in
// TestListsWithoutTheSocket.
func TestWayToTheRuntimesClient(t *testing.T) {
	wayBegins[internalapi.RuntimeService](t, clientFieldPath)
	testenv.Fails(t, useInProcessClient(&struct{ runtimeService int }{}, someRuntime{}), "there is no client, and no error")
}
