// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/joining/token"
)

// TestMain makes this test binary act as coracle when it is called by that name: the command line is tested as a user
// meets it, with a stand-in for the server that only reports how it was called.
func TestMain(m *testing.M) {
	program := func() { os.Exit(testApp().Main(context.Background(), os.Args)) }
	testscript.Main(m, map[string]func(){"coracle": program, "kubectl": program})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup:               apartFromMachine,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "answers": answers, "stopping": stopping, "signal": signalled,
			"put": put, "gets": gets, "flip": flip, "halve": halve, "private": private, "profile": profile,
			"program": fakeProgram, "imagearchive": imageArchive, "keypair": keyPair,
		},
	})
}

// apartFromMachine keeps a script from the settings and the kubeconfig of a coracle that is installed on this machine.
func apartFromMachine(env *testscript.Env) error {
	dir := filepath.Join(env.WorkDir, ".etc")
	env.Setenv("CORACLE_CONFIG_FILE", filepath.Join(dir, "config.yaml"))
	env.Setenv("CORACLE_WRITE_KUBECONFIG", filepath.Join(dir, "coracle.yaml"))
	return errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "config.yaml"), nil, 0o600))
}

// exits runs a command that must end with a given exit code: exits CODE PROGRAM ARGS...
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		code = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// answers waits until the process of this script is ready, stopping until its stop was requested.
func answers(ts *testscript.TestScript, _ bool, _ []string) {
	await(ts, func(r *status.Report) bool { return !r.Ready.IsZero() })
}

func stopping(ts *testscript.TestScript, _ bool, _ []string) {
	await(ts, func(r *status.Report) bool { return r.Stopping })
}

// private looks whether only its owner may read a file.
func private(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if mode := info.Mode().Perm(); mode != 0o600 {
		ts.Fatalf("%s has mode %o", args[0], mode)
	}
}

// profile looks into a file for a profile that knows a word: profile FILE WORD.
func profile(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	ts.Check(err)
	text, err := io.ReadAll(z)
	ts.Check(err)
	if !strings.Contains(string(text), args[1]) {
		ts.Fatalf("%s is no profile with %s", args[0], args[1])
	}
}

// signalled sends the process of this script a signal: signal HUP|TERM.
func signalled(ts *testscript.TestScript, _ bool, args []string) {
	o := readPIDFile(filepath.Join(ts.Getenv("CORACLE_RUN_DIR"), "coracle.pid"))
	sig := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM}[args[0]]
	if !o.alive || sig == 0 {
		ts.Fatalf("no process or no signal %s", args[0])
	}
	ts.Check(syscall.Kill(o.pid, sig))
}

func await(ts *testscript.TestScript, as func(*status.Report) bool) {
	client := status.NewClient(filepath.Join(ts.Getenv("CORACLE_RUN_DIR"), "coracle.sock"))
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if r, err := client.Status(context.Background()); err == nil && as(r) {
			return
		}
	}
	ts.Fatalf("the process does not answer as expected")
}

func testApp() *App {
	return &App{
		RunServer:        fakeServer,
		RunAgent:         fakeAgent,
		CheckServerArgs:  func(c *config.Server) error { return fakeArgs(c.APIServerArgs) },
		CheckKubeletArgs: fakeArgs,
		Emulate:          func(int) error { return nil },
		Become:           fakeTool,
		Libraries:        func() map[string]string { return map[string]string{"runc": "1.2.3"} },
		Restart:          func() error { return errors.New("a restart was tried") },
		Encryption:       fakeKeys{},
		RotateToken: func(_ context.Context, _ *clientv3.Client, _ string, r token.RotationRequest) (token.Token, []string, error) {
			if r.Old == "wrong" {
				return token.Token{}, nil, errors.New("not the cluster's; nothing was changed")
			}
			return token.Token{CAHash: strings.Repeat("a", 64), Role: r.Role, Secret: r.New}, []string{"board3"}, nil
		},
		RevokeNode: func(ctx context.Context, r RevokeRequest) error {
			members, err := r.Members(ctx)
			r.Progress(fmt.Sprintf("deleted %t, %d members", r.Deleted, len(members)))
			if r.Node == "board1" {
				return errors.New("a server's own node")
			}
			return err
		},
		SnapshotFiles: fakeFiles,
		TokenFiles:    func() []string { return []string{"token", "tokens-rotated"} },
		CheckHost:     preflight.LocalHost,
		Stdin:         os.Stdin,
		Stdout:        os.Stdout,
		Stderr:        os.Stderr,
		Environ:       os.Environ(),
		Host:          fakeHost{},
	}
}

// fakeKeys stands for the server's package.
type fakeKeys struct{}

func (fakeKeys) Status(dir string) (EncryptionStatus, error) {
	if _, err := os.Stat(dir); err != nil {
		return EncryptionStatus{}, err
	}
	return EncryptionStatus{Key: "key1", Encrypted: []string{"secrets"}, Readable: []string{"key1"}, Rotating: os.Getenv("FAKE_STAGE")}, nil
}

func (fakeKeys) Rotate(_ context.Context, _ string, _ *rest.Config, _ func(context.Context, func(context.Context, *clientv3.Client) error) error,
	progress func(string, int, []string)) error {
	progress("prepare", 0, nil)
	progress("prepare", 0, []string{"board2", "board3"})
	progress("re-encrypt", 500, nil)
	return nil
}

type fakeHost struct{}

func (fakeHost) Hostname() (string, error) {
	if name := os.Getenv("FAKE_HOSTNAME"); name != "" {
		return name, nil
	}
	return "Board1", nil
}

func (fakeHost) Addresses([]netip.Prefix) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.7")}, nil
}

func (fakeHost) Owns(ip netip.Addr) (bool, error) { return ip.String() == "192.0.2.7", nil }

// fakeAgent says what it would join.
func fakeAgent(_ context.Context, c *config.Agent, _ *Process) error {
	return fmt.Errorf("would join %s as %s", c.ServerURL, c.Node.Name)
}

// fakeServer prints the settings, reports two parts, and waits.
func fakeServer(ctx context.Context, c *config.Server, p *Process) error {
	if why := os.Getenv("FAKE_FAIL"); why != "" {
		return errors.New(why)
	}
	if os.Getenv("FAKE_PRINT") != "" {
		text, err := json.MarshalIndent(c, "", "  ")
		if err != nil {
			return err
		}
		fmt.Println(string(text))
	}
	api := fakeAPI()
	defer api.Close()
	if err := writeAdmin(c.Paths, api.URL); err != nil {
		return err
	}
	p.Board.Part("store").Set(status.Running, "leads")
	if os.Getenv("FAKE_AGENT") == "" {
		p.Admin.Handle("GET "+status.ServersPath, fakeServers())
		fakeLevel(p.Admin)
	}
	if what := os.Getenv("FAKE_TROUBLE"); what != "" {
		p.Board.Part("agent").Set(status.Degraded, what)
	}
	if os.Getenv("FAKE_STORE") != "" {
		return runStore(ctx, c.Paths, p.Admin, p.Ready)
	}
	p.Ready()
	if os.Getenv("FAKE_ONCE") != "" {
		return nil
	}
	<-ctx.Done()
	switch os.Getenv("FAKE_ANEW") {
	case "returns": // it was about to restart when the stop was asked for
		return ErrRestart
	case "hangs":
		p.Restart()
	}
	if os.Getenv("FAKE_HANG") != "" {
		<-time.After(time.Minute)
	}
	return nil
}

// fakeServers is the only server, or with FAKE_SERVERS three, one of which does not answer; with FAKE_SILENT no other
// one does.
func fakeServers() http.Handler {
	out := status.Servers{Servers: []status.ClusterServer{{Name: "board1", ID: "a1", Role: status.Leader, Self: true, Answers: true, Version: "v1"}}, Problems: []string{}}
	if os.Getenv("FAKE_SERVERS") != "" {
		out.Servers = append(out.Servers,
			status.ClusterServer{Name: "board2", ID: "b2", Role: status.Voter, Answers: true, Lag: 3, Version: "v1", Address: "192.0.2.8:6443"},
			status.ClusterServer{Name: "board3", ID: "c3", Role: status.Voter, Heard: time.Now().Add(-time.Minute), Address: "192.0.2.9:6443"})
	}
	for i := range out.Servers {
		if os.Getenv("FAKE_SILENT") != "" {
			out.Servers[i].Answers = out.Servers[i].Self
		}
	}
	var problems []string
	out.Failures, problems = status.Failures(out.Servers)
	out.Problems = append(out.Problems, problems...)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(out) // an error means that the asker has gone
	})
}

// fakeLevel is the level of a cluster of three servers and an agent. With FAKE_LEVEL the three know level 2, and the
// agent knows that level.
func fakeLevel(admin *status.Server) {
	agent, _ := strconv.Atoi(os.Getenv("FAKE_LEVEL")) // 0: no program knows level 2
	newest := 1
	if agent > 0 {
		newest = 2
	}
	cluster := 1
	judge := func() *status.Level {
		in := status.LevelInput{Cluster: cluster, Running: 1, Newest: newest, Version: "v2"}
		for i, name := range []string{"board1", "board2", "board3"} {
			address := "192.0.2." + strconv.Itoa(i+1) + ":6443"
			in.Servers = append(in.Servers, status.LevelServer{Address: address, Newest: newest, Leader: i == 0, Self: i == 0})
			in.Members = append(in.Members, status.Member{Name: name, Role: "server", Address: address, State: "alive", Self: i == 0,
				Level: newest, Running: 1})
		}
		in.Members = append(in.Members, status.Member{Name: "board4", Role: "agent", Version: "v1", State: "alive", Level: agent, Running: 1})
		in.Nodes = []status.LevelNode{{Name: "board5", Version: "v1"}}
		return status.JudgeLevel(in)
	}
	admin.SetLevel(judge)
	admin.Handle("POST "+status.RaisePath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := judge()
		if out.Next > 0 && len(out.HoldsUp) == 0 && !r.URL.Query().Has(status.RaiseCheck) {
			cluster = out.Next
			out = judge()
			out.Raised = true
		}
		_ = json.NewEncoder(w).Encode(out) // an error means that the client has ended
	}))
}

// fakeArgs takes arguments whose names are known to it.
func fakeArgs(args []string) error {
	var errs []error
	for _, arg := range args {
		if !strings.HasPrefix(arg, "event-ttl=") && !strings.HasPrefix(arg, "max-pods=") {
			errs = append(errs, fmt.Errorf("there is no flag %q", arg))
		}
	}
	return errors.Join(errs...)
}

// fakeTool says how a tool was called.
func fakeTool(name string, args, env []string) {
	fmt.Println(strings.Join(append([]string{name}, args...), " "))
	for _, v := range []string{"KUBECONFIG", "CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS"} {
		fmt.Println(v + "=" + getenv(env, v))
	}
}
