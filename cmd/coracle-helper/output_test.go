// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	types "github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// fakeTasks is a task service whose containers have a standard output and nothing else.
type fakeTasks struct {
	taskapi.TTRPCTaskService // panics for what the test does not expect
	failCreate               bool
	created                  *taskapi.CreateTaskRequest
	stdout                   *os.File
	processes                []*types.ProcessInfo
}

func (f *fakeTasks) Create(_ context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	f.created = r
	if f.failCreate {
		return nil, errors.New("no")
	}
	if r.Stdout != "" {
		var err error
		if f.stdout, err = os.OpenFile(r.Stdout, os.O_WRONLY, 0); err != nil {
			return nil, err
		}
	}
	return &taskapi.CreateTaskResponse{Pid: 42}, nil
}

func (f *fakeTasks) Start(context.Context, *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	return &taskapi.StartResponse{Pid: 42}, nil
}

func (f *fakeTasks) State(context.Context, *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	return &taskapi.StateResponse{Stdout: f.created.Stdout, Stderr: f.created.Stderr}, nil
}

func (f *fakeTasks) Pids(context.Context, *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	return &taskapi.PidsResponse{Processes: f.processes}, nil
}

func (f *fakeTasks) Delete(context.Context, *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	return &taskapi.DeleteResponse{ExitStatus: 3}, nil
}

func newService(t *testing.T) (*outputService, *fakeTasks, string) {
	t.Helper()
	bundle := t.TempDir()
	testenv.NoError(t, os.Mkdir(filepath.Join(bundle, "work"), 0o700))
	inner := &fakeTasks{}
	return newOutputService(inner, func() { t.Error("the shim ends") }), inner, bundle
}

// newFIFO makes a FIFO and opens it for reading, as containerd does.
func newFIFO(t *testing.T) (path string, reader *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "stdout")
	testenv.NoError(t, unix.Mkfifo(path, 0o600))
	reader = testenv.Must(os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0))(t)
	t.Cleanup(func() { reader.Close() })
	return path, reader
}

func TestOutputGoesThroughAPipe(t *testing.T) {
	s, inner, bundle := newService(t)
	ctx := context.Background()
	fifo, reader := newFIFO(t)
	testenv.Must(s.Create(ctx, &taskapi.CreateTaskRequest{ID: "c", Bundle: bundle, Stdout: fifo, Stderr: ""}))(t)
	if inner.created.Stdout == fifo || inner.created.Stderr != "" {
		t.Errorf("the service inside writes to %q and %q", inner.created.Stdout, inner.created.Stderr)
	}
	testenv.Must(s.Start(ctx, &taskapi.StartRequest{ID: "c"}))(t)
	state, err := s.State(ctx, &taskapi.StateRequest{ID: "c"})
	if err != nil || state.Stdout != fifo {
		t.Errorf("State names %q, %v: a restarted containerd would not find the output", state.GetStdout(), err)
	}
	testenv.Must(io.WriteString(inner.stdout, "hello"))(t)
	inner.stdout.Close()
	_ = reader.SetReadDeadline(time.Now().Add(2 * time.Minute))
	testenv.Equal(t, string(testenv.Must(io.ReadAll(reader))(t)), "hello", "read")
	testenv.Equal(t, testenv.Must(s.Delete(ctx, &taskapi.DeleteRequest{ID: "c"}))(t).ExitStatus, 3, "")
	testenv.Equal(t, len(s.tasks), 0, "a deleted task is remembered:")
}

// TestOutputEndsBeforeStart: a container that was created and killed, and never started, has no more output. A
// containerd that starts again deletes such a task only after it has read the end; with a writer left it would wait for
// ever, and with it the node.
func TestOutputEndsBeforeStart(t *testing.T) {
	s, inner, bundle := newService(t)
	fifo, reader := newFIFO(t)
	testenv.Must(s.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c", Bundle: bundle, Stdout: fifo}))(t)
	inner.stdout.Close() // as when its process ends
	_ = reader.SetReadDeadline(time.Now().Add(2 * time.Minute))
	if got, err := io.ReadAll(reader); err != nil || len(got) > 0 {
		t.Errorf("read %q, %v", got, err)
	}
	testenv.Check(t, testenv.Err(s.Delete(t.Context(), &taskapi.DeleteRequest{ID: "c"})))
}

// TestShimWithoutTaskEnds: a shim whose containerd was killed before it created a task does not stay.
func TestShimWithoutTaskEnds(t *testing.T) {
	for _, tasks := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			ended := 0
			s := newOutputService(&fakeTasks{}, func() { ended++ })
			for range tasks {
				testenv.Must(s.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c"}))(t)
			}
			time.Sleep(2 * firstTask) // fake time
			synctest.Wait()
			testenv.True(t, ended == 1-tasks, "a shim of %d tasks ended %d times", tasks, ended)
		})
	}
}

func TestOtherOutputIsLeftAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	testenv.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, target := range []string{"", file, "binary:///bin/logger", filepath.Join(t.TempDir(), "missing")} {
		s, inner, bundle := newService(t)
		inner.failCreate = true
		if _, err := s.Create(context.Background(), &taskapi.CreateTaskRequest{ID: "c", Bundle: bundle, Stdout: target}); err == nil {
			t.Fatal("the failure was swallowed")
		}
		testenv.Equal(t, inner.created.Stdout, target, "%q became", target)
		testenv.Equal(t, len(s.tasks), 0, "a task that was not created is remembered:")
	}
}

func TestEndedTaskStillHasItsProcess(t *testing.T) {
	s, inner, bundle := newService(t)
	ctx := context.Background()
	testenv.Must(s.Create(ctx, &taskapi.CreateTaskRequest{ID: "c", Bundle: bundle}))(t)
	pids := func(id string) []*types.ProcessInfo {
		resp := testenv.Must(s.Pids(ctx, &taskapi.PidsRequest{ID: id}))(t)
		return resp.Processes
	}
	if got := pids("c"); len(got) != 1 || got[0].Pid != 42 {
		t.Errorf("ended: %v", got)
	}
	inner.processes = []*types.ProcessInfo{{Pid: 42}, {Pid: 43}}
	testenv.Equal(t, len(pids("c")), 2, "running:")
	inner.processes = nil
	testenv.Equal(t, len(pids("other")), 0, "never created:")
	testenv.Must(s.Delete(ctx, &taskapi.DeleteRequest{ID: "c", ExecID: "exec"}))(t)
	testenv.True(t, len(pids("c")) == 1, "deleting a process started by exec forgot the task")
	testenv.Must(s.Delete(ctx, &taskapi.DeleteRequest{ID: "c"}))(t)
	testenv.Equal(t, len(pids("c")), 0, "deleted:")
}
