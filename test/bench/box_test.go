//go:build bench

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/proc"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// boxed are the parts of a server that others install as programs of their own.
const boxed = "metrics-server,local-storage,helm-controller"

// beside are programs for the same, which only this benchmark builds, at their modules' newest versions without
// replacements. metrics-server's is in go.mod.
var beside = []struct{ name, pkg string }{
	{"local-path-provisioner", "github.com/rancher/local-path-provisioner@v0.0.30"},
	{"helm-controller", "github.com/k3s-io/helm-controller@v0.17.9"},
}

// atRest is what a process takes: memory at the end of a while in which nothing was asked of it, and the rest over that
// while.
type atRest struct{ rss, anon, cpu, written float64 }

func (r atRest) minus(o atRest) atRest {
	return atRest{r.rss - o.rss, r.anon - o.anon, r.cpu - o.cpu, r.written - o.written}
}

func (r atRest) print(who string) {
	fmt.Printf("%-44s %9.1f %9.1f %9.2f %9.1f\n", who, r.rss, r.anon, r.cpu, r.written)
}

// TestBox measures a server with those parts beside one without, at the same time, each on a machine of its own; and
// then upstream's programs, which ask the second one. Differences of a few MB are chance in one pair, so that there are
// several.
func TestBox(t *testing.T) {
	programs := buildBeside(t)
	for turn := range 2 {
		t.Run(strconv.Itoa(turn), func(t *testing.T) {
			with, without := harness.NewMachine(t).NewServer(), serverBeside(t, programs)
			with.Start()
			without.Start()
			with.WaitReady()
			without.WaitReady()
			time.Sleep(window(6 * time.Minute)) // memory goes back to the kernel after five
			rest := during(window(5*time.Minute), with.Pid(), without.Pid())
			fmt.Printf("%-44s %9s %9s %9s %9s\n", "at rest", "RSS MB", "anon. MB", "% core", "KB/min")
			rest[0].print("server with " + boxed)
			rest[1].print("server without")
			rest[0].minus(rest[1]).print("these parts")
			pids := runBeside(t, without, programs)
			time.Sleep(window(3 * time.Minute)) // what they do at their start is no rest
			all := during(window(5*time.Minute), append(pids, without.Pid())...)
			for i, name := range []string{"metrics-server", beside[0].name, beside[1].name} {
				all[i].print("upstream's " + name)
			}
			all[3].minus(rest[1]).print("what the server takes more while they run")
		})
	}
}

func serverBeside(t *testing.T, programs string) *harness.Server {
	site := harness.NewSite(t)
	site.Needs = append(site.Needs, programs)
	return site.NewMachine().NewServer("--disable", boxed)
}

// buildBeside returns a folder with the programs.
func buildBeside(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	env := append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOBIN="+dir)
	run := func(args ...string) {
		c := exec.Command("go", args...)
		c.Env = env
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("build", "-tags", tags, "-ldflags", "-s -w", "-o", filepath.Join(dir, "metrics-server"), "sigs.k8s.io/metrics-server/cmd/metrics-server")
	for _, p := range beside {
		run("install", p.pkg)
	}
	return dir
}

// runBeside starts the programs on a server's machine and returns their pids, in the order of TestBox.
func runBeside(t *testing.T, s *harness.Server, programs string) []int {
	t.Helper()
	config := filepath.Join(s.Dir, "local-path.json")
	if err := os.WriteFile(config, []byte(`{"nodePathMap":[{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/opt/local-path-provisioner"]}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	k := s.Kubeconfig
	helper := filepath.Join(s.Dir, "helper.yaml")
	if err := os.WriteFile(helper, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: helper-pod}\nspec: {containers: [{name: helper-pod, image: busybox}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, args := range [][]string{
		{"metrics-server", "--kubeconfig", k, "--authentication-kubeconfig", k, "--authorization-kubeconfig", k, "--kubelet-insecure-tls", "--kubelet-use-node-status-port",
			"--kubelet-preferred-address-types", "InternalIP", "--metric-resolution", "15s", "--secure-port", "10270", "--cert-dir", filepath.Join(s.Dir, "metrics-server")},
		{"local-path-provisioner", "start", "--config", config, "--kubeconfig", k, "--namespace", "kube-system", "--helper-pod-file", helper},
		{"helm-controller", "--kubeconfig", k, "--node-name", "one"},
	} {
		ctx, cancel := context.WithCancel(context.Background())
		c := s.Machine.Command(ctx, filepath.Join(programs, args[0]), args[1:]...)
		var output bytes.Buffer
		c.Stdout, c.Stderr = &output, &output
		testenv.NoError(t, c.Start())
		ended := make(chan struct{})
		go func() {
			_ = c.Wait() // it is ended by cancel, or its output says why not
			close(ended)
		}()
		t.Cleanup(func() {
			select {
			case <-ended:
				t.Errorf("%s ended by itself: %s", args[0], output.String()[max(0, output.Len()-2000):])
			default:
			}
			cancel()
			<-ended
		})
		pids = append(pids, childOf(t, c.Process.Pid, ended))
	}
	return pids
}

// childOf waits for the program that nsenter starts in the machine's namespaces. It returns 0 if that has ended before.
func childOf(t *testing.T, pid int, ended <-chan struct{}) int {
	t.Helper()
	child := 0
	harness.Eventually(t, time.Minute, "nsenter starts the program", func() error {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
		if err == nil {
			child, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		select {
		case <-ended:
			return nil
		default:
		}
		return err
	})
	return child
}

// during measures processes over a while.
func during(length time.Duration, pids ...int) []atRest {
	before := make([]atRest, len(pids))
	began := time.Now()
	for i, pid := range pids {
		before[i] = atRest{cpu: cpuSeconds(pid), written: float64(proc.Written(pid)) / 1024}
	}
	time.Sleep(length) // of the measurement
	took := time.Since(began)
	out := make([]atRest, len(pids))
	for i, pid := range pids {
		out[i] = atRest{
			rss: proc.StatusMB(pid, "VmRSS:"), anon: proc.StatusMB(pid, "RssAnon:"),
			cpu: 100 * (cpuSeconds(pid) - before[i].cpu) / took.Seconds(), written: (float64(proc.Written(pid))/1024 - before[i].written) / took.Minutes(),
		}
	}
	return out
}
