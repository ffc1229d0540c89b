// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// lateStop bounds stopping what was started although the gate was closed meanwhile.
const lateStop = 10 * time.Second

// Starts is the gate through which a kubelet starts sandboxes and containers. Upstream's pod workers run on contexts
// that do not end with the kubelet's, so they start containers long after it has ended. Close ends that.
//
// The zero value is an open gate.
type Starts struct {
	mu       sync.Mutex
	closed   bool
	underway int
	idle     chan struct{} // closed when nothing is under way any more; nil while no Close waits
}

// Close refuses further starts and waits for those under way until ctx is done. It returns how many are still under
// way. Their results are stopped as soon as the runtime has started them.
func (s *Starts) Close(ctx context.Context) (left int) {
	s.mu.Lock()
	s.closed = true
	if s.underway > 0 && s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	if idle == nil {
		return 0
	}
	select {
	case <-idle:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.underway
}

// beginStart counts a start, unless the gate is closed.
func (s *Starts) beginStart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return status.Error(codes.Unavailable, "the pods of this node are being stopped: nothing is started any more")
	}
	s.underway++
	return nil
}

// endStart counts the end of a start. If the gate was closed meanwhile, it calls stop before.
func (s *Starts) endStart(ctx context.Context, stop func(context.Context) error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed && stop != nil {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), lateStop)
		if err := stop(stopping); err != nil {
			klog.FromContext(ctx).Error(err, "What was started while pods were being stopped could not be stopped")
		}
		cancel()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underway--
	if s.underway == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// gatedClient calls the runtime through a gate.
type gatedClient struct {
	runtimeapi.RuntimeServiceClient
	gate *Starts
}

// startGated makes one call that starts something. stop is called with the response if the gate was closed
// meanwhile. The call does not end with its caller: the runtime could start the container all the same.
func startGated[Q, A any](ctx context.Context, c gatedClient, call func(context.Context, Q, ...grpc.CallOption) (A, error), question Q,
	options []grpc.CallOption, stop func(context.Context, A) error) (A, error) {
	if err := c.gate.beginStart(); err != nil {
		var none A
		return none, err
	}
	calling, cancel := context.WithoutCancel(ctx), func() {}
	if deadline, ok := ctx.Deadline(); ok {
		calling, cancel = context.WithDeadline(calling, deadline)
	}
	defer cancel()
	answer, err := call(calling, question, options...)
	var undo func(context.Context) error
	if err == nil && stop != nil {
		undo = func(ctx context.Context) error { return stop(ctx, answer) }
	}
	c.gate.endStart(ctx, undo)
	return answer, err
}

// RunPodSandbox implements runtimeapi.RuntimeServiceClient.
func (c gatedClient) RunPodSandbox(ctx context.Context, in *runtimeapi.RunPodSandboxRequest,
	options ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error) {
	return startGated(ctx, c, c.RuntimeServiceClient.RunPodSandbox, in, options,
		func(ctx context.Context, made *runtimeapi.RunPodSandboxResponse) error {
			_, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: made.PodSandboxId})
			return err
		})
}

// CreateContainer implements runtimeapi.RuntimeServiceClient. A created container runs nothing.
func (c gatedClient) CreateContainer(ctx context.Context, in *runtimeapi.CreateContainerRequest,
	options ...grpc.CallOption) (*runtimeapi.CreateContainerResponse, error) {
	return startGated(ctx, c, c.RuntimeServiceClient.CreateContainer, in, options, nil)
}

// StartContainer implements runtimeapi.RuntimeServiceClient.
func (c gatedClient) StartContainer(ctx context.Context, in *runtimeapi.StartContainerRequest,
	options ...grpc.CallOption) (*runtimeapi.StartContainerResponse, error) {
	return startGated(ctx, c, c.RuntimeServiceClient.StartContainer, in, options,
		func(ctx context.Context, _ *runtimeapi.StartContainerResponse) error {
			_, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: in.ContainerId, Timeout: 1})
			return err
		})
}

// gateStarts makes a kubelet that is not running yet start sandboxes and containers through a gate. After an error the
// kubelet is unchanged.
func gateStarts(kubelet any, starts *Starts) error {
	if starts == nil {
		return nil
	}
	client, err := clientOf(kubelet)
	if err != nil {
		return fmt.Errorf("kubelet: gate its starts: %w", err)
	}
	*client = gatedClient{*client, starts}
	return nil
}
