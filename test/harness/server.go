// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Server is one coracle process on a Machine, a server or an agent; it may be started again after it ended.
type Server struct {
	*Machine
	Role       string   // the command: "agent", or "server" if empty
	Bin        string   // another binary than the one under test
	Args       []string // after it
	DataDir    string
	Kubeconfig string
	Log        string // path: what the process wrote

	ownDisk bool

	cmd  *exec.Cmd
	pid  int // 0: it has ended before it was seen
	done chan struct{}
	err  error
}

// Coracle is the path of the binary under test, from CORACLE_BIN.
func (m *Machine) Coracle() string {
	m.T.Helper()
	bin := os.Getenv("CORACLE_BIN")
	testenv.Require(m.T, bin != "", "CORACLE_BIN is not set: run `make e2e`, which builds the binary and says where it is")
	abs := testenv.Must(filepath.Abs(bin))(m.T)
	return abs
}

// NewServer prepares a server with an empty data directory; Start starts it.
func (m *Machine) NewServer(args ...string) *Server {
	s := &Server{
		Machine: m, DataDir: filepath.Join(m.Dir, "data"), Kubeconfig: filepath.Join(m.Dir, "kubeconfig"),
		Log: filepath.Join(m.Dir, "coracle.log"),
	}
	s.Args = append([]string{
		"--data-dir", s.DataDir, "--node-name", m.NodeName(), "--node-ip", m.IP, "--write-kubeconfig", s.Kubeconfig,
	}, args...)
	return s
}

// NewAgent prepares an agent with an empty data directory that joins a server with that one's agent token. kubectl is
// the server's matter.
func (m *Machine) NewAgent(server *Server, args ...string) *Server {
	m.T.Helper()
	token := testenv.Must(os.ReadFile(server.Seen("server", "agent-token")))(m.T)
	s := &Server{Machine: m, Role: "agent", DataDir: filepath.Join(m.Dir, "data"), Log: filepath.Join(m.Dir, "coracle.log")}
	s.Args = append([]string{
		"--data-dir", s.DataDir, "--node-name", m.NodeName(), "--node-ip", m.IP,
		"--server", "https://" + net.JoinHostPort(server.IP, "6443"), "--token", trim(string(token)),
	}, args...)
	return s
}

// FindIP makes the process find the machine's address by itself, as one does that was given none.
func (s *Server) FindIP() *Server {
	s.T.Helper()
	i := slices.Index(s.Args, "--node-ip")
	testenv.Require(s.T, i >= 0, "there is no --node-ip to leave out")
	s.Args = slices.Delete(s.Args, i, i+2)
	return s
}

// AddBoxImage puts the tests' image where the node imports it from.
func (s *Server) AddBoxImage() {
	s.T.Helper()
	images := s.Seen("images")
	testenv.NoError(s.T, os.MkdirAll(images, 0o755))
	WriteBoxImage(s.T, filepath.Join(images, "box.tar.gz"))
}

// NewPeer prepares a server with an empty data directory that joins another one's cluster.
func (m *Machine) NewPeer(server *Server, args ...string) *Server {
	m.T.Helper()
	token := testenv.Must(os.ReadFile(server.Seen("server", "token")))(m.T)
	return m.NewServer(append([]string{"--server", "https://" + net.JoinHostPort(server.IP, "6443"), "--token", trim(string(token))}, args...)...)
}

// NodeName is what the machine is called as a node.
func (m *Machine) NodeName() string { return fmt.Sprintf("node-%d", m.Number) }

// Start starts the process; it does not wait for it to be ready.
func (s *Server) Start() {
	s.T.Helper()
	log := testenv.Must(os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644))(s.T)
	defer log.Close()
	s.cmd = s.Command(context.Background(), cmp.Or(s.Bin, s.Coracle()), append([]string{cmp.Or(s.Role, "server")}, s.Args...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	testenv.NoError(s.T, s.cmd.Start())
	done := make(chan struct{})
	cmd := s.cmd
	go func() { s.err = cmd.Wait(); close(done) }()
	s.done = done
	s.pid = onlyChild(s.T, s.cmd.Process.Pid, done)
}

// StartAPI is Start, and waits until the API server takes writes.
func (s *Server) StartAPI() {
	s.T.Helper()
	s.Start()
	s.WaitAPI()
}

// StartNode is Start of the first server, and waits until its node is ready.
func (s *Server) StartNode() {
	s.T.Helper()
	s.Start()
	s.WaitReady()
}

// Pid is the server's process id as this process sees it.
func (s *Server) Pid() int { return s.pid }

// Kill ends the process with SIGKILL, as a crash or the kernel would.
func (s *Server) Kill() { s.end(syscall.SIGKILL, Soon) }

// Pause keeps the process from running until Resume, as a machine without CPU does. Its kernel goes on.
func (s *Server) Pause() { s.signal(s.pid, syscall.SIGSTOP) }

// Resume ends Pause.
func (s *Server) Resume() {
	s.T.Helper()
	s.signal(s.pid, syscall.SIGCONT)
	s.signal(s.cmd.Process.Pid, syscall.SIGCONT) // nsenter, which stops with its child
}

func (s *Server) signal(pid int, sig syscall.Signal) {
	s.T.Helper()
	if pid == 0 { // kill(2) would send it to the group of this process
		s.T.Fatalf("coracle had ended before it got the signal %v: %v\n%s", sig, s.err, s.LogTail(40))
	}
	testenv.NoError(s.T, syscall.Kill(pid, sig), "signal %v to process %d", sig, pid)
}

// Stop asks the process to end with SIGTERM and waits; the error is the process's own exit.
func (s *Server) Stop() error {
	s.end(syscall.SIGTERM, Soon)
	return s.err
}

func (s *Server) end(sig syscall.Signal, within time.Duration) {
	s.T.Helper()
	s.signal(s.pid, sig)
	select {
	case <-s.done:
	case <-time.After(within):
		s.T.Fatalf("coracle did not end within %v of %v\n%s", within, sig, s.LogTail(40))
	}
}

// WaitExit waits for a process that is expected to end by itself and returns its exit code.
func (s *Server) WaitExit(within time.Duration) int {
	s.T.Helper()
	select {
	case <-s.done:
	case <-time.After(within):
		s.T.Fatalf("coracle is still running after %v\n%s", within, s.LogTail(40))
	}
	var exit *exec.ExitError
	if errors.As(s.err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// Ended is closed when the process has ended.
func (s *Server) Ended() <-chan struct{} { return s.done }

// Alive fails the test when the process has ended.
func (s *Server) Alive() error {
	select {
	case <-s.done:
		s.T.Fatalf("coracle ended by itself: %v\n%s", s.err, s.LogTail(60))
	default:
	}
	return nil
}

// WaitReady waits until the node is Ready.
func (s *Server) WaitReady() {
	s.T.Helper()
	Eventually(s.T, Longer, "node Ready", func() error {
		if err := s.Alive(); err != nil {
			return err
		}
		out, err := s.TryKubectl("get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
		if err != nil {
			return err
		}
		if out != "True" {
			return fmt.Errorf("Ready is %q", out)
		}
		return nil
	})
}

// LogTail returns the last n lines of the server's log.
func (s *Server) LogTail(n int) string {
	b, err := os.ReadFile(s.Log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

// KubectlCommand prepares coracle's kubectl with the admin's credentials.
func (s *Server) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	return s.Command(ctx, s.Coracle(), append([]string{"kubectl", "--kubeconfig", s.Kubeconfig}, args...)...)
}

// TryKubectl runs kubectl and returns its output.
func (s *Server) TryKubectl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute) // more than any --timeout that a scenario gives
	defer cancel()
	return Output(s.KubectlCommand(ctx, args...))
}

// Kubectl runs kubectl, fails the test when it fails, and returns its output without the last newline.
func (s *Server) Kubectl(args ...string) string {
	s.T.Helper()
	return s.In(s.T).Kubectl(args...)
}

// Apply applies a manifest given as text.
func (s *Server) Apply(manifest string) {
	s.T.Helper()
	s.In(s.T).Apply(manifest)
}

func trim(s string) string { return strings.TrimRight(s, "\n") }
