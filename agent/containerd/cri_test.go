// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// ownProcess says that this process is there for one test: a process starts a containerd once.
const ownProcess = "CORACLE_TEST_CONTAINERD"

// TestListsAsOverTheSocket: a containerd answers in the process what it answers over its socket, be it an error.
func TestListsAsOverTheSocket(t *testing.T) {
	inOwnProcess(t, func(s *Server) {
		sameOverTheSocket(t, s)
		testenv.Equal(t, s.FailedShims(), 0, "failed shims:")
	})
}

// TestFailedShimsAreCounted: containerd ends the containers of a shim that it cannot load, and only logs that.
func TestFailedShimsAreCounted(t *testing.T) {
	inOwnProcess(t, func(s *Server) { testenv.Equal(t, s.FailedShims(), 2, "failed shims:") }, "a", "b")
}

// inOwnProcess runs a test with a containerd in a process of its own. There are bundles of containers with these names
// before it starts, whose shims cannot be reached.
func inOwnProcess(t *testing.T, test func(*Server), bundles ...string) {
	testenv.RequireRoot(t, "containerd makes what is root's alone")
	if os.Getenv(ownProcess) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.v")
		cmd.Env = append(os.Environ(), ownProcess+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	dir := t.TempDir()
	o := Options{Root: dir + "/root", State: dir + "/s", BinDir: dir + "/bin", CNIBinDir: dir + "/bin", CNIConfDir: dir + "/net.d", RegistryDir: dir + "/certs.d", Runtime: config.Runtime{PauseImage: "pause:1", Snapshotter: "native"}}
	for _, name := range []string{"runc", shimName} { // nothing is run
		testenv.NoError(t, os.MkdirAll(o.BinDir, 0o755))
		testenv.NoError(t, os.WriteFile(filepath.Join(o.BinDir, name), []byte("#!/bin/false\n"), 0o755))
	}
	for _, bundle := range bundles {
		dir := filepath.Join(o.State, "io.containerd.runtime.v2.task", Namespace, bundle)
		testenv.NoError(t, os.MkdirAll(dir, 0o700))
		for _, file := range []string{"shim-binary-path", "bootstrap.json"} {
			testenv.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(filepath.Join(o.BinDir, shimName)), 0o600))
		}
	}
	t.Setenv("PATH", os.Getenv("PATH")) // Start adds to it
	s := testenv.Must(Start(t.Context(), o))(t)
	defer s.Stop()
	test(s)
}

func sameOverTheSocket(t *testing.T, s *Server) {
	conn := testenv.Must(grpc.NewClient("unix://"+s.Address(), grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	defer conn.Close()
	socket, lists := runtimeapi.NewRuntimeServiceClient(conn), s.Calls()

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	for name, ctx := range map[string]context.Context{"": t.Context(), "cancelled": cancelled, "too late": late} {
		same := func(what string, a proto.Message, aErr error, b proto.Message, bErr error) {
			t.Helper()
			if status.Code(aErr) != status.Code(bErr) || aErr == nil && !proto.Equal(a, b) {
				t.Errorf("%s %s: in the process %v, %v; over the socket %v, %v", what, name, a, aErr, b, bErr)
			}
		}
		for _, filter := range []*runtimeapi.PodSandboxFilter{
			nil, {}, {Id: "unknown"}, {State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}, {LabelSelector: map[string]string{"a": "b"}},
		} {
			a, aErr := lists.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: filter})
			b, bErr := socket.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: filter})
			same("sandboxes", a, aErr, b, bErr)
		}
		for _, filter := range []*runtimeapi.ContainerFilter{
			nil, {}, {Id: "unknown"}, {PodSandboxId: "unknown"}, {State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}, {LabelSelector: map[string]string{"a": "b"}},
		} {
			a, aErr := lists.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: filter})
			b, bErr := socket.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: filter})
			same("containers", a, aErr, b, bErr)
		}
		for _, verbose := range []bool{false, true} {
			a, aErr := lists.Status(ctx, &runtimeapi.StatusRequest{Verbose: verbose})
			b, bErr := socket.Status(ctx, &runtimeapi.StatusRequest{Verbose: verbose})
			same("status", a, aErr, b, bErr)
		}
	}
}
