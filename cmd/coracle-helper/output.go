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

// handOver is how long a deleted task's last output may take to be read, as long as upstream waits for its own copying.
const handOver = 10 * time.Second

// firstTask is how long a shim waits for its first task, which containerd creates at once. A containerd that is killed
// between the two forgets the shim when it starts again: it would stay for ever, with 12 MB.
const firstTask = time.Minute

// outputService is the shim's task service with a drain.Pipe between each container and the FIFOs that containerd
// reads. Upstream's service below writes into FIFOs of ours; above, they are not seen: State reports the names that
// containerd gave. Processes started by exec keep upstream's plain FIFOs: their only reader is the session that started
// them.
//
// It also keeps a task that ended while containerd was away from being taken for one that was never created, see Pids;
// and it ends a shim that never gets a task.
type outputService struct {
	taskapi.TTRPCTaskService
	unused *time.Timer // ends the shim, unless a task was created

	mu    sync.Mutex
	tasks map[string]*containerTask // by container, from Create to Delete
}

// containerTask is one container's first process and its output.
type containerTask struct {
	pid            uint32
	stdout, stderr string // as containerd named them
	pipes          []*drain.Pipe
}

// newOutputService wraps a task service. It calls end when no task was created for firstTask.
func newOutputService(inner taskapi.TTRPCTaskService, end func()) *outputService {
	return &outputService{TTRPCTaskService: inner, tasks: map[string]*containerTask{}, unused: time.AfterFunc(firstTask, end)}
}

// RegisterTTRPC makes the shim serve this instead of the service inside.
func (s *outputService) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

// Create puts the pipes in place before the container gets its descriptors, and seals them when the container's side is
// open. Start would be too late: a container that is killed before it has no Start, and a restarted containerd deletes
// the task only after the end of its output. Only a container that is restored opens its side in Start.
func (s *outputService) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	s.unused.Stop()
	t := &containerTask{stdout: r.Stdout, stderr: r.Stderr}
	r.Stdout = t.attach(ctx, r.Bundle, "stdout", r.Stdout)
	r.Stderr = t.attach(ctx, r.Bundle, "stderr", r.Stderr)
	if err := nativeFilter(r.Bundle); err != nil {
		log.G(ctx).WithError(err).Warn("the pause process keeps the system call filter that containerd wrote, which takes longer to make")
	}
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

// State reports the FIFOs that containerd made, which is what a restarted containerd attaches to.
func (s *outputService) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	resp, err := s.TTRPCTaskService.State(ctx, r)
	if t := s.task(r.ID, r.ExecID); t != nil && err == nil {
		resp.Stdout, resp.Stderr = t.stdout, t.stderr
	}
	return resp, err
}

// Pids names an ended task's first process for as long as the task is not deleted. A restarted containerd takes a task
// without processes for one whose creation was interrupted and deletes it, and with it how it ended: a Job that was
// done while coracle was away would count as failed.
func (s *outputService) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	resp, err := s.TTRPCTaskService.Pids(ctx, r)
	if t := s.task(r.ID, ""); t != nil && err == nil && len(resp.Processes) == 0 {
		resp.Processes = append(resp.Processes, &types.ProcessInfo{Pid: t.pid})
	}
	return resp, err
}

// Delete gives a reader the time to take the rest.
func (s *outputService) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := s.TTRPCTaskService.Delete(ctx, r)
	if t := s.task(r.ID, r.ExecID); t != nil && err == nil {
		s.mu.Lock()
		delete(s.tasks, r.ID)
		s.mu.Unlock()
		t.finish(ctx)
	}
	return resp, err
}

// task finds a container's task; nil for a process started by exec.
func (s *outputService) task(id, execID string) *containerTask {
	if execID != "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[id]
}

// attach starts a pipe for one stream and returns what upstream has to write to. Whatever is not a FIFO (nothing, a
// file, a logging program) and whatever fails stays as it was: a container without a drain is better than none.
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
		Dir:  filepath.Join(bundle, "work", "output"), // the bundle is on a tmpfs; what it calls work is on the disk
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

// finish waits for the last output to be read, where there is a reader, and removes the pipes.
func (t *containerTask) finish(ctx context.Context) {
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
