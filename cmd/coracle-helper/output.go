// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/fifo"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/coracle-k8s/coracle/cmd/coracle-helper/drain"
)

// handOver is how long a deleted task's last output may take to be read, as long as upstream waits for its own copying.
const handOver = 10 * time.Second

// outputService is the shim's task service with a drain.Pipe between each container and the FIFOs that containerd reads.
// Upstream's service below writes into FIFOs of ours; above, nobody sees them: State reports the names that containerd
// gave. Processes started by exec keep upstream's plain FIFOs: their only reader is the session that started them.
type outputService struct {
	taskapi.TTRPCTaskService

	mu      sync.Mutex
	outputs map[string]*output // by container
}

// output is the standard output and error of one container.
type output struct {
	stdout, stderr string // as containerd named them
	pipes          []*drain.Pipe
}

// RegisterTTRPC makes the shim serve this instead of the service inside.
func (s *outputService) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

// Create puts the pipes in place before the container gets its descriptors.
func (s *outputService) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	out := &output{stdout: r.Stdout, stderr: r.Stderr}
	r.Stdout = out.attach(ctx, r.Bundle, "stdout", r.Stdout)
	r.Stderr = out.attach(ctx, r.Bundle, "stderr", r.Stderr)
	resp, err := s.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		out.close()
		return nil, err
	}
	if len(out.pipes) > 0 {
		s.mu.Lock()
		s.outputs[r.ID] = out
		s.mu.Unlock()
	}
	return resp, nil
}

// Start seals the pipes: by now the container's side is open, also where it was restored from a checkpoint.
func (s *outputService) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	resp, err := s.TTRPCTaskService.Start(ctx, r)
	if out := s.output(r.ID, r.ExecID); out != nil && err == nil {
		out.seal()
	}
	return resp, err
}

// State reports the FIFOs that containerd made, which is what a restarted containerd attaches to.
func (s *outputService) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	resp, err := s.TTRPCTaskService.State(ctx, r)
	if out := s.output(r.ID, r.ExecID); out != nil && err == nil {
		resp.Stdout, resp.Stderr = out.stdout, out.stderr
	}
	return resp, err
}

// Delete gives a reader the time to take the rest.
func (s *outputService) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := s.TTRPCTaskService.Delete(ctx, r)
	if out := s.output(r.ID, r.ExecID); out != nil && err == nil {
		s.mu.Lock()
		delete(s.outputs, r.ID)
		s.mu.Unlock()
		out.finish(ctx)
	}
	return resp, err
}

// output finds a container's output; nil for a process started by exec and for a container without FIFOs.
func (s *outputService) output(id, execID string) *output {
	if execID != "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outputs[id]
}

// attach starts a pipe for one stream and returns what upstream shall write to. Whatever is not a FIFO (nothing, a file,
// a logging program) and whatever fails stays as it was: a container without a drain is better than none.
func (o *output) attach(ctx context.Context, bundle, name, target string) string {
	if target == "" || strings.Contains(target, "://") {
		return target
	}
	if is, err := fifo.IsFifo(target); err != nil || !is {
		return target
	}
	in := filepath.Join(bundle, name+".in")
	p, err := drain.Start(drain.Options{
		In: in, Out: target,
		Dir:  filepath.Join(bundle, "work", "output"), // the bundle is on a tmpfs; what it calls work is on the disk
		Name: name,
	})
	if err != nil {
		log.G(ctx).WithError(err).Warn("the container's output will stop it while nobody reads")
		return target
	}
	o.pipes = append(o.pipes, p)
	return in
}

func (o *output) seal() {
	for _, p := range o.pipes {
		p.Seal()
	}
}

// finish waits for the last output to be read, where there is a reader, and removes the pipes.
func (o *output) finish(ctx context.Context) {
	o.seal()
	timer := time.NewTimer(handOver)
	defer timer.Stop()
	for _, p := range o.pipes {
		if !p.HasReader() {
			continue
		}
		select {
		case <-p.Done():
		case <-timer.C:
			log.G(ctx).Warn("the last output of a deleted container was not read")
			o.close()
			return
		case <-ctx.Done():
			o.close()
			return
		}
	}
	o.close()
}

func (o *output) close() {
	for _, p := range o.pipes {
		p.Close()
	}
}
