// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	types "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/fifo"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/coracle-k8s/coracle/cmd/coracle-helper/drain"
)

// handOver is how long the reader has to read the last output of a deleted task. Upstream waits as long for its own
// copying.
const handOver = 10 * time.Second

// firstTask is how long a shim waits for its first task, which containerd creates at once. A containerd that is killed
// between starting the shim and creating the task does not know the shim after its restart. The shim would run for
// ever, with 12 MB.
const firstTask = time.Minute

// outputService is the shim's task service with a drain.Pipe between each container and the FIFOs that containerd
// reads. Upstream's wrapped service writes into FIFOs that outputService makes. containerd does not see these: State
// reports the names that containerd gave. Processes started by exec keep upstream's plain FIFOs: their only reader is
// the session that started them.
//
// It also prevents containerd from treating a task that ended while containerd was away as one that was never created
// (see Pids), and it ends a shim that never gets a task.
type outputService struct {
	taskapi.TTRPCTaskService
	unused *time.Timer // ends the shim when it fires, unless a task was created

	mu    sync.Mutex
	tasks map[string]*containerTask // by container id, from Create to Delete
}

// containerTask is one container's first process and its output.
type containerTask struct {
	pid            uint32
	stdout, stderr string // FIFOs by the names that containerd gave
	pipes          []*drain.Pipe
}

// newOutputService wraps a task service. It calls end when no task was created within firstTask.
func newOutputService(inner taskapi.TTRPCTaskService, end func()) *outputService {
	return &outputService{TTRPCTaskService: inner, tasks: map[string]*containerTask{}, unused: time.AfterFunc(firstTask, end)}
}

// RegisterTTRPC makes the shim serve outputService instead of the wrapped service.
func (s *outputService) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

// Create starts the pipes before the container gets its descriptors, and seals them when the container has opened its
// end. Sealing in Start would be too late: a container that is killed before its start has no Start, and a restarted
// containerd deletes the task only after the end of its output. Only a container that is restored from a checkpoint
// opens its end in Start.
func (s *outputService) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	s.unused.Stop()
	if err := lowerSpecVersion(r); err != nil {
		return nil, err
	}
	t := &containerTask{stdout: r.Stdout, stderr: r.Stderr}
	r.Stdout = t.attach(ctx, r.Bundle, "stdout", r.Stdout)
	r.Stderr = t.attach(ctx, r.Bundle, "stderr", r.Stderr)
	resp, err := s.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		t.close()
		return nil, err
	}
	t.pid = resp.Pid
	if r.Checkpoint == "" {
		t.seal()
	}
	s.mu.Lock()
	s.tasks[r.ID] = t
	s.mu.Unlock()
	return resp, nil
}

// Start seals the pipes of a container that was restored from a checkpoint.
func (s *outputService) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	resp, err := s.TTRPCTaskService.Start(ctx, r)
	if t := s.task(r.ID, r.ExecID); t != nil && err == nil {
		t.seal()
	}
	return resp, err
}

// State reports the FIFOs that containerd made. A restarted containerd attaches to these.
func (s *outputService) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	resp, err := s.TTRPCTaskService.State(ctx, r)
	if t := s.task(r.ID, r.ExecID); t != nil && err == nil {
		resp.Stdout, resp.Stderr = t.stdout, t.stderr
	}
	return resp, err
}

// Pids returns the first process of an ended task until the task is deleted. A restarted containerd treats a task
// without processes as one whose creation was interrupted. It deletes such a task and loses its exit status: a Job that
// finished while coracle was away would count as failed.
func (s *outputService) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	resp, err := s.TTRPCTaskService.Pids(ctx, r)
	if t := s.task(r.ID, ""); t != nil && err == nil && len(resp.Processes) == 0 {
		resp.Processes = append(resp.Processes, &types.ProcessInfo{Pid: t.pid})
	}
	return resp, err
}

// Delete deletes the task and gives its reader up to handOver to read the remaining output.
func (s *outputService) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := s.TTRPCTaskService.Delete(ctx, r)
	if t := s.task(r.ID, r.ExecID); t != nil && err == nil {
		s.mu.Lock()
		delete(s.tasks, r.ID)
		s.mu.Unlock()
		t.drainAndClose(ctx)
	}
	return resp, err
}

// task returns a container's task, and nil for a process started by exec.
func (s *outputService) task(id, execID string) *containerTask {
	if execID != "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[id]
}

// attach starts a pipe for one stream and returns the path to which upstream has to write. It returns target unchanged
// when target is not a FIFO (empty, a file, a logging program) or the pipe cannot be started: a container without a
// pipe is better than no container.
func (t *containerTask) attach(ctx context.Context, bundle, name, target string) string {
	if target == "" || strings.Contains(target, "://") {
		return target
	}
	if is, err := fifo.IsFifo(target); err != nil || !is {
		return target
	}
	in := filepath.Join(bundle, name+".in")
	p, err := drain.Start(drain.Options{
		In: in, Out: target,
		Dir:  filepath.Join(bundle, "work", "output"), // the bundle is on a tmpfs; its link "work" is a folder on the disk
		Name: name,
	})
	if err != nil {
		log.G(ctx).WithError(err).Warn("the container will block on its output while that is not read")
		return target
	}
	t.pipes = append(t.pipes, p)
	return in
}

func (t *containerTask) seal() {
	for _, p := range t.pipes {
		p.Seal()
	}
}

// drainAndClose waits until the last output is read, where there is a reader, and removes the pipes.
func (t *containerTask) drainAndClose(ctx context.Context) {
	t.seal()
	timer := time.NewTimer(handOver)
	defer timer.Stop()
	for _, p := range t.pipes {
		if !p.HasReader() {
			continue
		}
		select {
		case <-p.Done():
		case <-timer.C:
			log.G(ctx).Warn("the last output of a deleted container was not read")
			t.close()
			return
		case <-ctx.Done():
			t.close()
			return
		}
	}
	t.close()
}

func (t *containerTask) close() {
	for _, p := range t.pipes {
		p.Close()
	}
}
