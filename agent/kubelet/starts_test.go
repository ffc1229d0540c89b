// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// slowRuntime takes an hour for each start, or until its caller's deadline.
type slowRuntime struct {
	runtimeapi.RuntimeServiceClient
	mu      sync.Mutex
	started []string
	stopped []string
}

func (r *slowRuntime) record(list *[]string, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*list = append(*list, id)
}

func (r *slowRuntime) start(ctx context.Context, id string) error {
	select {
	case <-time.After(time.Hour):
		r.record(&r.started, id)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *slowRuntime) RunPodSandbox(ctx context.Context, _ *runtimeapi.RunPodSandboxRequest,
	_ ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error) {
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: "sandbox"}, r.start(ctx, "sandbox")
}

func (r *slowRuntime) CreateContainer(ctx context.Context, _ *runtimeapi.CreateContainerRequest,
	_ ...grpc.CallOption) (*runtimeapi.CreateContainerResponse, error) {
	return &runtimeapi.CreateContainerResponse{ContainerId: "created"}, r.start(ctx, "created")
}

func (r *slowRuntime) StartContainer(ctx context.Context, in *runtimeapi.StartContainerRequest,
	_ ...grpc.CallOption) (*runtimeapi.StartContainerResponse, error) {
	return &runtimeapi.StartContainerResponse{}, r.start(ctx, in.ContainerId)
}

func (r *slowRuntime) StopPodSandbox(_ context.Context, in *runtimeapi.StopPodSandboxRequest,
	_ ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error) {
	r.record(&r.stopped, in.PodSandboxId)
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (r *slowRuntime) StopContainer(_ context.Context, in *runtimeapi.StopContainerRequest,
	_ ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error) {
	r.record(&r.stopped, in.ContainerId)
	return &runtimeapi.StopContainerResponse{}, nil
}

// kubeletOf is as much of a kubelet as the gate needs.
func kubeletOf(client runtimeapi.RuntimeServiceClient) (kubelet any, now func() runtimeapi.RuntimeServiceClient) {
	type service struct {
		runtimeClient runtimeapi.RuntimeServiceClient
	}
	k := &struct{ runtimeService *service }{&service{client}}
	return k, func() runtimeapi.RuntimeServiceClient { return k.runtimeService.runtimeClient }
}

// startAll starts one of each kind, as a pod worker whose context does not end, and returns when they wait.
func startAll(ctx context.Context, client runtimeapi.RuntimeServiceClient) (wait func() []error) {
	var errs [3]error
	var calls sync.WaitGroup
	calls.Go(func() { _, errs[0] = client.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{}) })
	calls.Go(func() { _, errs[1] = client.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{}) })
	calls.Go(func() {
		_, errs[2] = client.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: "container"})
	})
	synctest.Wait()
	return func() []error {
		calls.Wait()
		return errs[:]
	}
}

// TestPodsThatStartAreStopped: once the gate is closed nothing is started, starts under way are waited for, and what
// still comes of them is stopped, even when its caller has gone.
func TestPodsThatStartAreStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runtime, starts := &slowRuntime{}, &Starts{}
		k, client := kubeletOf(runtime)
		testenv.NoError(t, gateStarts(k, starts))
		ctx, cancel := context.WithCancel(t.Context())
		wait := startAll(ctx, client())
		cancel()
		patience, done := context.WithTimeout(t.Context(), time.Minute)
		defer done()
		testenv.Equal(t, starts.Close(patience), 3, "starts under way after a minute:")
		for _, err := range startAll(t.Context(), client())() {
			testenv.Equal(t, status.Code(err), codes.Unavailable, "a start after the close: %v:", err)
		}
		testenv.Equal(t, starts.Close(t.Context()), 0, "starts under way in the end:")
		for _, err := range wait() {
			testenv.Check(t, err)
		}
		testenv.Equal(t, len(runtime.started), 3, "the runtime was to finish what it had begun; it has started %v:", runtime.started)
		stopped := map[string]bool{}
		for _, id := range runtime.stopped {
			stopped[id] = true
		}
		if !stopped["sandbox"] || !stopped["container"] || len(runtime.stopped) != 2 {
			t.Errorf("stopped: %v; want the sandbox and the container that was started", runtime.stopped)
		}
	})
}

// TestOpenGateChangesNothing: an open gate lets starts through, with their deadlines, and stops nothing.
func TestOpenGateChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runtime, starts := &slowRuntime{}, &Starts{}
		k, client := kubeletOf(runtime)
		testenv.NoError(t, gateStarts(k, starts))
		for _, err := range startAll(t.Context(), client())() {
			testenv.Check(t, err)
		}
		testenv.Equal(t, len(runtime.started), 3, "started:")
		testenv.Equal(t, len(runtime.stopped), 0, "stopped:")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, err := range startAll(ctx, client())() {
			testenv.ErrorIs(t, err, context.DeadlineExceeded)
		}
		testenv.Equal(t, starts.Close(t.Context()), 0, "starts under way:")
		testenv.Fails(t, gateStarts(&struct{}{}, starts), "a kubelet without a client has a gate")
	})
}

// TestStuckReportDelaysTheEndLittle: a report that waits for a kubelet that registers for ever does not keep the
// process from its end.
func TestStuckReportDelaysTheEndLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reporting sync.WaitGroup
		registered := make(chan struct{})
		reporting.Go(func() { <-registered })
		began := time.Now()
		waitAtMost(&reporting, reportTimeout)
		testenv.Equal(t, time.Since(began), reportTimeout, "it waited")
		close(registered)
		waitAtMost(&reporting, reportTimeout)
		testenv.Equal(t, time.Since(began), reportTimeout, "it waited for a report that has ended; in all")
	})
}
