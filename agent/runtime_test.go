// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-k8s/coracle/agent/containerd"
	"github.com/coracle-k8s/coracle/agent/images"
	"github.com/coracle-k8s/coracle/agent/records"
	"github.com/coracle-k8s/coracle/agent/registries"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/internal/podkill"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// childDir, in the environment, makes this test binary a node's container runtime instead.
const childDir = "CORACLE_TEST_RUNTIME_DIR"

// chatImage holds testdata/chat.
const chatImage = "docker.io/library/chat:1"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := runtimeChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, "runtime:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runtimeChild is containerd with the images of dir/images and the registries of dir/registries.yaml, until it is asked
// to stop.
func runtimeChild(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	logrus.SetLevel(logrus.WarnLevel)
	o := runtimeOptions(dir)
	o.Records = &records.Records{Logger: slog.Default(), BootIDFile: filepath.Join(dir, "boot_id"),
		Node: podkill.Node{Root: o.Root, State: o.State, BinDir: dir}}
	config, err := registries.Load(filepath.Join(dir, "registries.yaml"))
	if err != nil {
		return err
	}
	relay, err := registries.NewRelay(config)
	if err != nil {
		return err
	}
	if relay != nil {
		go func() { _ = relay.Run(ctx) }()
	}
	if err := config.Write(o.RegistryDir, relay); err != nil {
		return err
	}
	o.RegistryAuths = config.Auths()
	server, err := containerd.Start(ctx, o)
	if err != nil {
		return err
	}
	defer server.Stop()
	if _, err := containerd.Start(ctx, runtimeOptions(dir)); err == nil {
		return errors.New("a second containerd was started in one process")
	}
	store := images.Containerd{
		Client: server.Client(), Namespace: containerd.Namespace, Snapshotter: server.Snapshotter(), NotifyImageAdded: server.NotifyImageAdded,
	}
	if err := store.DropLost(ctx); err != nil {
		return err
	}
	folder := &images.Folder{Dir: filepath.Join(dir, "images"), IndexFile: filepath.Join(dir, "images.json"), Store: store}
	if err := folder.ImportAll(ctx); err != nil {
		return err
	}
	if err := share(dir, server); err != nil {
		return err
	}
	fmt.Println("ready")
	select {
	case <-ctx.Done():
		return nil
	case err := <-server.Failed():
		return err
	}
}

func runtimeOptions(dir string) containerd.Options {
	return containerd.Options{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), BinDir: filepath.Join(dir, "programs"),
		CNIBinDir: filepath.Join(dir, "programs"), CNIConfDir: filepath.Join(dir, "net.d"),
		RegistryDir: filepath.Join(dir, "registries"), Runtime: config.Runtime{PauseImage: embedded.PauseImage},
		PauseTar: filepath.Join(dir, "images", "pause.tar"),
	}
}

// node is one container runtime in a process of its own, which a test may kill, and a client of it.
type node struct {
	t       *testing.T
	dir     string
	cmd     *exec.Cmd
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	sandbox string
	config  *cri.PodSandboxConfig
}

func newNode(t *testing.T) *node {
	t.Helper()
	testenv.RequireRoot(t, "it runs containers")
	dir, err := os.MkdirTemp("", "coracle-rt") // short: socket names below it are limited
	testenv.NoError(t, err)
	n := &node{t: t, dir: dir}
	t.Cleanup(n.remove)
	programs, err := embedded.Unpack(dir)
	if errors.Is(err, embedded.ErrNotEmbedded) {
		testenv.Missing(t, testenv.Embedded, "make embedded has not run in this tree")
	}
	testenv.NoError(t, err)
	chat := filepath.Join(dir, "chat")
	n.build(chat, "./testdata/chat")
	n.programs(programs)
	testenv.NoError(t, os.Mkdir(filepath.Join(dir, "images"), 0o755))
	pause := testenv.Must(os.ReadFile(programs.File("pause.tar")))(t)
	n.archive("pause.tar", pause)
	var b bytes.Buffer
	im := imagetar.Image{Name: chatImage, Entrypoint: []string{"/chat"}, Files: []imagetar.File{{Path: "/chat", Mode: 0o755, Source: chat}}}
	testenv.NoError(t, imagetar.Write(&b, im))
	n.archive("chat.tar", b.Bytes())

	conn := testenv.Must(
		grpc.NewClient("unix://"+runtimeOptions(dir).Address(), grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	n.conn = conn
	n.runtime, n.images = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return n
}

// build builds one of our programs.
func (n *node) build(out, pkg string) {
	n.t.Helper()
	cmd := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
}

// programs puts runc as it is embedded beside a helper built from the sources at hand.
func (n *node) programs(from embedded.Dir) {
	n.t.Helper()
	bin := runtimeOptions(n.dir).BinDir
	testenv.NoError(n.t, os.MkdirAll(bin, 0o755))
	n.build(filepath.Join(bin, "coracle-helper"), "../cmd/coracle-helper")
	for name, target := range map[string]string{"runc": from.File("runc"), "containerd-shim-runc-v2": "coracle-helper", "coracle-cni": "coracle-helper"} {
		testenv.NoError(n.t, os.Symlink(target, filepath.Join(bin, name)))
	}
}

func (n *node) archive(name string, data []byte) {
	n.t.Helper()
	testenv.NoError(n.t, os.WriteFile(filepath.Join(n.dir, "images", name), data, 0o600))
}

// start starts the runtime and waits until it serves.
func (n *node) start() {
	n.t.Helper()
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), childDir+"="+n.dir)
	n.cmd.Stderr = os.Stderr
	out := testenv.Must(n.cmd.StdoutPipe())(n.t)
	testenv.NoError(n.t, n.cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		n.t.Fatalf("the runtime did not start: %q, %v", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
}

func (n *node) signal(s os.Signal) {
	if n.cmd != nil {
		_ = n.cmd.Process.Signal(s)
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}

// remove ends what the test started and leaves nothing behind.
func (n *node) remove() {
	if n.sandbox != "" {
		if n.cmd == nil {
			n.start()
		}
		n.endPod()
	}
	n.signal(syscall.SIGTERM)
	if n.conn != nil {
		_ = n.conn.Close()
	}
	if left := mountsBelow(n.dir); len(left) > 0 {
		n.t.Errorf("mounts left behind: %v", left)
		for _, m := range left {
			_ = unix.Unmount(m, unix.MNT_DETACH)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup/*/*"} { // v2; v1 and hybrid
		groups, _ := filepath.Glob(pattern)
		for _, g := range groups {
			if "/"+filepath.Base(g) == n.cgroup() {
				os.Remove(g)
			}
		}
	}
	testenv.Check(n.t, os.RemoveAll(n.dir))
}

func (n *node) endPod() {
	n.t.Helper()
	ctx := context.Background()
	testenv.Check(n.t, testenv.Err(n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: n.sandbox})), "stop the pod")
	testenv.Check(n.t, testenv.Err(n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: n.sandbox})), "remove the pod")
}

func (n *node) cgroup() string { return "/coracle-test-" + filepath.Base(n.dir) }

func mountsBelow(dir string) []string {
	data, _ := os.ReadFile("/proc/self/mounts")
	var out []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			out = append([]string{f[1]}, out...)
		}
	}
	return out
}

// pod makes the node's one pod, in the host's network: there is no pod network here.
func (n *node) pod() {
	n.t.Helper()
	logs := filepath.Join(n.dir, "logs")
	testenv.NoError(n.t, os.MkdirAll(logs, 0o755))
	n.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "pod", Uid: "uid-" + filepath.Base(n.dir), Namespace: "test"},
		LogDirectory: logs,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: n.cgroup(), SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	resp := testenv.Must(n.runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: n.config}))(n.t)
	n.sandbox = resp.PodSandboxId
}

// container starts chat in the pod and returns its id and the process's id.
func (n *node) container(name string, args ...string) (id string, pid int) {
	n.t.Helper()
	ctx := context.Background()
	made := testenv.Must(n.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: n.sandbox, SandboxConfig: n.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: chatImage}, Args: args, LogPath: name + ".log",
			Linux: &cri.LinuxContainerConfig{},
		},
	}))(n.t)
	testenv.Must(n.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId}))(n.t)
	return made.ContainerId, n.pid(made.ContainerId)
}

func (n *node) pid(id string) int {
	n.t.Helper()
	data := testenv.Must(
		os.ReadFile(filepath.Join(n.dir, "state", "io.containerd.runtime.v2.task", containerd.Namespace, id, "init.pid")))(n.t)
	pid := testenv.Must(strconv.Atoi(string(data)))(n.t)
	return pid
}

// written is the number of lines that the container has got rid of.
func (n *node) written(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/written", pid))
	testenv.NoError(n.t, err, "the container has ended")
	lines, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return lines
}

// logged returns the numbers in the container's log, in order.
func (n *node) logged(name string) []int {
	data, err := os.ReadFile(filepath.Join(n.dir, "logs", name+".log"))
	if err != nil {
		return nil
	}
	var out []int
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line) // time, stream, tag, "line", number
		if len(fields) > 4 && fields[3] == "line" {
			if i, err := strconv.Atoi(fields[4]); err == nil {
				out = append(out, i)
			}
		}
	}
	return out
}

func (n *node) status(id string) *cri.ContainerStatus {
	n.t.Helper()
	resp := testenv.Must(n.runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: id}))(n.t)
	return resp.Status
}

func (n *node) waitFor(what string, cond func() bool) {
	n.t.Helper()
	testenv.Until(n.t, 2*time.Minute, what, cond)
}

// TestContainersOutliveTheRuntime kills the container runtime while one container writes a megabyte a second and
// another is about to write and end. Neither may stall, and their logs are whole when the runtime is back.
func TestContainersOutliveTheRuntime(t *testing.T) {
	n := newNode(t)
	n.start()
	n.pod()
	chatty, chattyPID := n.container("chatty", "forever", "1000000")
	burst, burstPID := n.container("burst", "burst", "30000", "7")
	n.waitFor("the first log lines", func() bool { return len(n.logged("chatty")) > 100 })

	before := n.written(chattyPID) // the container goes on meanwhile, and on a busy machine for long
	n.signal(syscall.SIGKILL)
	atKill := n.written(chattyPID)
	testenv.NoError(t, os.WriteFile(fmt.Sprintf("/proc/%d/root/go", burstPID), nil, 0o600))
	// Three megabytes each: FIFOs hold 64 KiB.
	n.waitFor("three megabytes from a container whose output is not read", func() bool { return n.written(chattyPID) > atKill+30000 })
	n.waitFor("the other container's end", func() bool { return unix.Kill(burstPID, 0) == unix.ESRCH })

	n.start()
	testenv.Equal(t, n.status(chatty).State, cri.ContainerState_CONTAINER_RUNNING, "the chatty container is")
	testenv.Equal(t, n.pid(chatty), chattyPID, "the chatty container's process is")
	if got := n.status(burst); got.State != cri.ContainerState_CONTAINER_EXITED || got.ExitCode != 7 {
		t.Errorf("the ended container is %s with code %d, want 7", got.State, got.ExitCode)
	}
	if got := n.logged("burst"); !isSequence(got, 0, 30000) {
		t.Errorf("the ended container's log has %d lines of 30000", len(got))
	}
	restarted := n.written(chattyPID)
	n.waitFor("the log to catch up", func() bool { got := n.logged("chatty"); return len(got) > 0 && got[len(got)-1] > restarted+1000 })
	checkChattyLog(t, n.logged("chatty"), before, atKill)
}

// checkChattyLog allows one gap: what the process had read and not written yet when it was killed, some time between
// two counts of the lines.
func checkChattyLog(t *testing.T, got []int, before, after int) {
	t.Helper()
	const inFlight = 100_000 / 100 // bytes through lines: its buffers are smaller
	gaps := 0
	for i := 1; i < len(got); i++ {
		if got[i] == got[i-1]+1 {
			continue
		}
		gaps++
		if missing := got[i] - got[i-1] - 1; missing < 0 || missing > inFlight || got[i] < before-2*inFlight || got[i-1] > after+inFlight {
			t.Errorf("lines %d to %d are missing; the runtime was killed between %d and %d", got[i-1]+1, got[i]-1, before, after)
		}
	}
	testenv.True(t, gaps <= 1, "%d gaps in the log", gaps)
}

func isSequence(got []int, from, to int) bool {
	if len(got) != to-from {
		return false
	}
	for i, v := range got {
		if v != from+i {
			return false
		}
	}
	return true
}
