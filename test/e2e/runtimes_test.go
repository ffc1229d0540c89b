//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// standIns are programs that stand in for runtimes, and for journalctl. Of the runtimes, only Debian's crun is a real
// one here. CALLS is a folder in which each leaves a file when it has run a container.
var standIns = map[string]string{
	"nvidia-container-runtime": `case " $* " in *" create "*) touch CALLS/nvidia ;; esac; exec runc "$@"`,
	"containerd-shim-kata-v2":  `case " $* " in *" start "*) touch CALLS/kata ;; esac; exec containerd-shim-runc-v2 "$@"`,
	"containerd-shim-spin-v2":  `exit 1`,
	"containerd-shim-wws-v1":   `sleep 100000`,
	"journalctl":               `case $1 in --field) echo coracle.service ;; *) echo "the journal, by a stand-in: $*" ;; esac`,
}

// newRuntimesServer prepares a server on a machine with the stand-ins, whose calls leave files in the folder calls.
func newRuntimesServer(t *testing.T) (s *harness.Server, programs, calls string) {
	t.Helper()
	m := harness.NewMachine(t)
	s = m.NewServer()
	s.AddBoxImage()
	programs, calls = filepath.Join(m.Dir, "programs"), filepath.Join(m.Dir, "calls")
	for _, dir := range []string{programs, calls} {
		testenv.NoError(t, os.Mkdir(dir, 0o755))
	}
	for name, script := range standIns {
		text := "#!/bin/sh\n" + strings.ReplaceAll(script, "CALLS", calls) + "\n"
		testenv.NoError(t, os.WriteFile(filepath.Join(programs, name), []byte(text), 0o755))
	}
	m.Env = append(m.Env, "PATH="+programs+":/usr/bin:/bin")
	return s, programs, calls
}

// TestRuntimesOfTheMachine: installed runtimes are found, labelled and run pods of their RuntimeClasses; one that is
// stuck is left out, and one that is removed loses its label at the next start.
func TestRuntimesOfTheMachine(t *testing.T) {
	if _, err := os.Stat("/usr/bin/crun"); err != nil {
		testenv.Missing(t, testenv.Crun, "%v", err)
	}
	s, programs, calls := newRuntimesServer(t)
	s.StartNode()
	k := s.In(t)
	k.Await(soon, "serviceaccount/default", "{.metadata.name}", "default")
	node := "node/" + s.NodeName()
	label := func(name string) string { return `{.metadata.labels.runtime\.coracle\.dev/` + name + `}` }
	k.Await(soon, node, label("crun")+label("kata")+label("nvidia")+label("spin")+label("wws"), "truetruetruetrue")
	k.Becomes(soon, "crun kata nvidia spin", "get", "runtimeclasses", "-o", "jsonpath={.items[*].metadata.name}")
	k.Await(soon, "runtimeclass/kata", "{.handler}{.scheduling.nodeSelector}", `kata{"runtime.coracle.dev/kata":"true"}`)
	harness.Eventually(t, soon, "the stuck shim is named", func() error {
		return statusLine(s, "container runtimes", "degraded.*wws .*did not reply")
	})

	addMadeUpDevice(t, s.Machine)
	k.Await(soon, node, `{.status.allocatable.vendor\.test/device}`, "1")
	for _, name := range []string{"crun", "nvidia", "kata"} {
		more := ""
		if name == "crun" {
			more = "resources: {limits: {vendor.test/device: 1}}"
		}
		k.Apply(pod("by-"+name, `[sh, -c, "echo started; testbox hold"]`, more, "runtimeClassName: "+name))
	}
	k.Apply(pod("device", "[testbox, hold]", "", ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=300s")
	for _, name := range []string{"nvidia", "kata"} {
		testenv.NoError(t, testenv.Err(os.Stat(filepath.Join(calls, name))), "the stand-in did not run the pod")
	}
	testenv.NoError(t, containersOf(s, "crun", 2), "the sandbox is one of them")
	testenv.Equal(t, k.Kubectl("logs", "by-crun"), "started", "the log of crun's container")
	testenv.Equal(t, k.Kubectl("exec", "by-crun", "--", "sh", "-c", "echo $MADE_UP; cat /made-up/file; test -c /dev/made-up && echo device"),
		"by a CDI spec\nmounted\ndevice", "what crun's container has of the made-up device")
	uids := func() string { return k.Kubectl("get", "pods", "-o", "jsonpath={.items[*].metadata.uid}") }
	before := uids()
	logsOfTheMachine(k, s.NodeName())

	t.Run("restart", func(t *testing.T) {
		testenv.NoError(t, s.Stop())
		for _, name := range []string{"containerd-shim-spin-v2", "containerd-shim-wws-v1"} {
			testenv.NoError(t, os.Remove(filepath.Join(programs, name)))
		}
		s.Args = append(s.Args, "--default-runtime", "crun")
		s.StartNode()
		k := s.In(t)
		k.Await(soon, node, label("crun")+label("spin"), "true")
		harness.Eventually(t, soon, "no runtime is in trouble", func() error {
			return statusLine(s, "container runtimes", "running.*runc, crun, kata, nvidia")
		})
		k.Becomes(soon, "crun kata nvidia spin", "get", "runtimeclasses", "-o", "jsonpath={.items[*].metadata.name}")
		testenv.Equal(t, uids(), before, "the pods of all runtimes:")
		testenv.Equal(t, k.Kubectl("exec", "by-crun", "--", "echo", "alive"), "alive", "exec in crun's container after the restart")
		k.Apply(pod("by-default", "[testbox, hold]", "", ""))
		k.Kubectl("wait", "--for=condition=Ready", "pod/by-default", "--timeout=300s")
		testenv.NoError(t, containersOf(s, "crun", 4), "it is the default runtime")
		k.Kubectl("delete", "pod", "--all", "--timeout=180s")
		harness.Eventually(t, soon, "crun's containers are removed", func() error { return containersOf(s, "crun", 0) })
	})
	t.Run("a default that is not installed", func(t *testing.T) {
		testenv.NoError(t, s.Stop())
		s.Args = append(s.Args, "--default-runtime", "nvidia-cdi")
		s.Start()
		harness.Eventually(t, soon, "the error names what was found", func() error {
			return s.LogSays("--default-runtime nvidia-cdi cannot be used: nvidia-cdi is not installed in ")
		})
		testenv.NoError(t, s.LogSays("name one that was found: runc, crun, kata, nvidia"))
		testenv.NoError(t, statusLine(s, "container runtimes", "failed.*--default-runtime nvidia-cdi"))
	})
}

// containersOf returns an error unless a runtime keeps records of so many containers.
func containersOf(s *harness.Server, runtime string, want int) error {
	entries, err := os.ReadDir(s.Seen("run", "containerd", runtime, "k8s.io"))
	if err == nil && len(entries) != want {
		err = fmt.Errorf("%s has %d containers, want %d", runtime, len(entries), want)
	}
	return err
}

// logsOfTheMachine: the log of the service is read by the API, by administrators alone.
func logsOfTheMachine(k *harness.Kube, node string) {
	k.T.Helper()
	path := "/api/v1/nodes/" + node + "/proxy/logs/?query=coracle&tailLines=5"
	contains(k, k.Kubectl("get", "--raw", path), "the journal, by a stand-in:", "--unit=coracle", "--lines=5")
	k.Kubectl("create", "clusterrolebinding", "reader", "--clusterrole=admin", "--user=reader")
	k.Refused("nodes/proxy", "get", "--raw", path, "--as=reader")
}

// madeUpDevice is a device plugin with one device, that a file in /etc/cdi describes. It stands in for a vendor's.
type madeUpDevice struct {
	deviceplugin.UnimplementedDevicePluginServer
}

// addMadeUpDevice describes the device on the machine and registers its plugin with the kubelet.
func addMadeUpDevice(t *testing.T, m *harness.Machine) {
	t.Helper()
	places := filepath.Join(m.Dir, "places") // the machine's own /etc and /var/lib
	testenv.NoError(t, os.MkdirAll(filepath.Join(places, "etc/cdi"), 0o755))
	made := filepath.Join(m.Dir, "made-up")
	testenv.NoError(t, os.Mkdir(made, 0o755))
	testenv.NoError(t, os.WriteFile(filepath.Join(made, "file"), []byte("mounted\n"), 0o644))
	testenv.NoError(t, os.WriteFile(filepath.Join(places, "etc/cdi/made-up.json"), []byte(`{"cdiVersion": "0.6.0", "kind": "vendor.test/device",
"devices": [{"name": "one", "containerEdits": {"env": ["MADE_UP=by a CDI spec"],
"deviceNodes": [{"path": "/dev/made-up", "hostPath": "/dev/null"}],
"mounts": [{"hostPath": "`+made+`", "containerPath": "/made-up", "options": ["ro", "bind"]}]}}]}`), 0o644))

	sockets := filepath.Join(places, "var/lib/kubelet/device-plugins")
	l := testenv.Must(net.Listen("unix", filepath.Join(sockets, "made-up.sock")))(t)
	server := grpc.NewServer()
	deviceplugin.RegisterDevicePluginServer(server, madeUpDevice{})
	served := make(chan error, 1) // one: Serve returns once
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); testenv.Check(t, <-served) })
	conn := testenv.Must(grpc.NewClient("unix://"+filepath.Join(sockets, "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	defer conn.Close()
	harness.Eventually(t, soon, "the kubelet takes the device plugin", func() error {
		_, err := deviceplugin.NewRegistrationClient(conn).Register(t.Context(), &deviceplugin.RegisterRequest{
			Version: deviceplugin.Version, Endpoint: "made-up.sock", ResourceName: "vendor.test/device"})
		return err
	})
}

func (madeUpDevice) GetDevicePluginOptions(context.Context, *deviceplugin.Empty) (*deviceplugin.DevicePluginOptions, error) {
	return &deviceplugin.DevicePluginOptions{}, nil
}

func (madeUpDevice) ListAndWatch(_ *deviceplugin.Empty, s grpc.ServerStreamingServer[deviceplugin.ListAndWatchResponse]) error {
	err := s.Send(&deviceplugin.ListAndWatchResponse{Devices: []*deviceplugin.Device{{ID: "one", Health: deviceplugin.Healthy}}})
	if err == nil {
		<-s.Context().Done()
	}
	return err
}

func (madeUpDevice) Allocate(_ context.Context, r *deviceplugin.AllocateRequest) (*deviceplugin.AllocateResponse, error) {
	out := &deviceplugin.AllocateResponse{}
	for range r.ContainerRequests {
		out.ContainerResponses = append(out.ContainerResponses,
			&deviceplugin.ContainerAllocateResponse{CdiDevices: []*deviceplugin.CDIDevice{{Name: "vendor.test/device=one"}}})
	}
	return out, nil
}
