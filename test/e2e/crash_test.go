//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// downtime is how long the control plane and the node's agent are away in the crash test.
func downtime(t *testing.T) time.Duration {
	v := os.Getenv("CORACLE_TEST_DOWNTIME")
	if v == "" {
		return 10 * time.Second
	}
	return testenv.Must(time.ParseDuration(v))(t)
}

// heldByPipes is more lines of the chatty pod, of 100 bytes, than pipes without a reader take.
const heldByPipes = 20_000

// crash kills coracle with SIGKILL while pods serve, one of them writing up to 1 MB/s to its log. They keep serving
// while it is away; the same containers run when it is back, and nothing that was acknowledged is lost.
func crash(t *testing.T, s *harness.Server) {
	k := s.Namespace(t, "crash")
	k.Apply(pod("serving", "[testbox, serve]", "", "") + "---" + pod("chatty", "[testbox, chat, '1000000']", "", ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/serving", "pod/chatty", "--timeout=180s")
	ids := containers(k)
	address := map[string]string{}
	for _, name := range []string{"serving", "chatty"} {
		address[name] = "http://" + k.Kubectl("get", "pod", name, "-o", "jsonpath={.status.podIP}") + ":8080/"
	}
	acknowledged := 0
	for ; acknowledged < 20; acknowledged++ {
		k.Kubectl("create", "configmap", fmt.Sprintf("kept-%d", acknowledged), "--from-literal=n="+strconv.Itoa(acknowledged))
	}
	s.Kill()

	ask := func(name string) string {
		out, err := s.Run(harness.Box(t), "get", address[name], "120")
		testenv.NoError(t, err, "%s does not answer while coracle is away", name)
		return strings.TrimSpace(out)
	}
	before, _ := strconv.Atoi(ask("chatty"))
	began, away := time.Now(), downtime(t)
	for time.Since(began) < away {
		if got := ask("serving"); got != "serving" {
			t.Fatalf("serving answers %q", got)
		}
		time.Sleep(200 * time.Millisecond) // the pace of the questions, not a wait for something
	}
	after, _ := strconv.Atoi(ask("chatty"))
	t.Logf("the chatty pod wrote %d lines in the %v that coracle was away", after-before, time.Since(began).Round(time.Second))
	// A process that is stalled by its output writes no more once the pipes are full, however long one waits.
	for _, more := range []int{before + heldByPipes, after + heldByPipes} {
		harness.Eventually(t, soon, "the chatty pod goes on writing", func() error {
			if n, _ := strconv.Atoi(ask("chatty")); n < more {
				return fmt.Errorf("it has written %d lines, %d at first", n, before)
			}
			return nil
		})
	}

	s.StartNode()
	harness.Eventually(t, soon, "pods are still there", func() error {
		if got := containers(k); got != ids {
			return fmt.Errorf("containers are\n%s, were\n%s", got, ids)
		}
		return nil
	})
	for i := range acknowledged {
		if got := k.Kubectl("get", "configmap", fmt.Sprintf("kept-%d", i), "-o", "jsonpath={.data.n}"); got != strconv.Itoa(i) {
			t.Errorf("configmap %d holds %q", i, got)
		}
	}
	for _, pod := range []string{"serving", "chatty"} { // the node is Ready from before: its kubelet answers a moment later
		k.Prints(nil, "exec", pod, "--", "true")
	}
	logGoesOn(k, "chatty")
	k.Kubectl("delete", "pod", "serving", "chatty", "--timeout=180s")
}

// logGoesOn checks that a chatty container's log still follows what it writes now. A log that the kubelet rotates has
// no file for a moment, and a process that asks for it just then is refused.
func logGoesOn(k *harness.Kube, name string) {
	k.T.Helper()
	harness.Eventually(k.T, soon, "the log of "+name+" reaches a line that was written after the restart", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		logs := k.KubectlCommand(ctx, "-n", k.NS, "logs", "-f", "--tail=1", name)
		var complaint strings.Builder
		logs.Stderr = &complaint
		pipe, err := logs.StdoutPipe()
		if err == nil {
			err = logs.Start()
		}
		if err != nil {
			return err
		}
		want, err := strconv.Atoi(k.Kubectl("exec", name, "--", "testbox", "get", "http://127.0.0.1:8080/", "120"))
		lines, reached := bufio.NewScanner(pipe), false
		for !reached && lines.Scan() {
			n, notLine := strconv.Atoi(strings.TrimLeft(strings.Fields(lines.Text() + " x")[0], "0"))
			reached = notLine == nil && n >= want
		}
		cancel()
		ended := logs.Wait()
		if !reached {
			err = fmt.Errorf("it did not reach line %d, but ended: %v, %s", want, errors.Join(err, lines.Err(), ended), complaint.String())
		}
		return err
	})
}

// containers lists the namespace's containers with their ids and restarts.
func containers(k *harness.Kube) string {
	var out string
	err := harness.Reaching(func() (err error) {
		out, err = k.Try("get", "pods", "--sort-by=.metadata.name", "-o",
			`jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
		return err
	})
	if err != nil {
		return err.Error()
	}
	return out
}

// stopAndStart ends coracle with SIGTERM: it exits with 0, pods keep running, and a new start finds them.
func stopAndStart(t *testing.T, s *harness.Server) {
	k := s.Namespace(t, "stop")
	k.Apply(pod("serving", "[testbox, serve]", "", ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/serving", "--timeout=180s")
	ids := containers(k)
	address := "http://" + k.Kubectl("get", "pod", "serving", "-o", "jsonpath={.status.podIP}") + ":8080/"
	began := time.Now()
	if err := s.Stop(); err != nil {
		t.Errorf("coracle ended with %v after SIGTERM\n%s", err, s.LogTail(20))
	}
	t.Logf("SIGTERM to exit: %v", time.Since(began).Round(10*time.Millisecond))
	if out, err := s.Run(harness.Box(t), "get", address, "120"); err != nil || strings.TrimSpace(out) != "serving" {
		t.Errorf("after SIGTERM the pod answers %q, %v", out, err)
	}
	s.StartNode()
	harness.Eventually(t, soon, "the same container", func() error {
		if got := containers(k); got != ids {
			return fmt.Errorf("containers are\n%s, were\n%s", got, ids)
		}
		return nil
	})
}

// otherProxy starts the node with --disable-kube-proxy and --disable network-policy: the rules that it made for
// Services and policies go, everything else stays.
func otherProxy(t *testing.T, s *harness.Server) {
	k := s.Namespace(t, "free")
	k.Apply(pod("closed", "[testbox, serve]", "", "") + "---" + pod("asking", "[testbox, serve]", "", "") + `---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed}, spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress]}}`)
	k.Kubectl("wait", "--for=condition=Ready", "pod/closed", "pod/asking", "--timeout=180s")
	address := "http://" + k.Kubectl("get", "pod", "closed", "-o", "jsonpath={.status.podIP}") + ":8080/"
	reached := func(want bool) {
		t.Helper()
		harness.Eventually(t, soon, fmt.Sprintf("the other pod reaches the one with the policy: %t", want), func() error {
			// Where kubectl itself fails nothing is known of the pods.
			got, err := k.Try("exec", "asking", "--", "sh", "-c", "testbox get "+address+" 0 || echo none")
			if answers := got == "closed"; err == nil && (answers != want || !answers && !strings.HasSuffix(got, "none")) {
				err = fmt.Errorf("it gets %q", got)
			}
			return err
		})
	}
	reached(false)
	nft := filepath.Join(s.DataDir, "bin", "current", "nft")
	tables := func() string {
		return testenv.Must(s.Run(nft, "list", "tables"))(t)
	}
	served := func(tables string) bool {
		return strings.Contains(tables, "table ip kube-proxy") || strings.Contains(tables, "table ip coracle-ipvs")
	}
	if got := tables(); !served(got) || !strings.Contains(got, "table inet coracle-policy") {
		t.Fatalf("the Service proxy has no table, or policies have none: %s", got)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("coracle ended with %v after SIGTERM\n%s", err, s.LogTail(20))
	}
	if got := tables(); !served(got) {
		t.Errorf("stopping the node took the rules for Services away: %s", got)
	}
	with := s.Args
	s.Args = append(slices.Clone(with), "--disable-kube-proxy", "--disable", "network-policy")
	s.StartNode()
	// The node is Ready from before: its network comes up a moment later.
	harness.Eventually(t, soon, "the rules for Services and policies are gone, and nothing else", func() error {
		if got := tables(); strings.Contains(got, "kube-proxy") || strings.Contains(got, "coracle-ipvs") || strings.Contains(got, "coracle-policy") || !strings.Contains(got, "table inet coracle") {
			return fmt.Errorf("tables %s", got)
		}
		out, err := s.Run(s.Coracle(), "status", "--data-dir", s.DataDir)
		if err == nil && !strings.Contains(out, "left to another proxy") {
			err = fmt.Errorf("status says %s", out)
		}
		return err
	})
	harness.Eventually(t, soon, "the status says that policies are not enforced", func() error { return statusLine(s, "network policies", "disabled") })
	reached(true)
	if err := s.Stop(); err != nil {
		t.Errorf("coracle ended with %v after SIGTERM\n%s", err, s.LogTail(20))
	}
	s.Args = with
	s.StartNode()
	harness.Eventually(t, soon, "the rules are there again", func() error {
		if got := tables(); !served(got) || !strings.Contains(got, "table inet coracle-policy") {
			return fmt.Errorf("tables %s", got)
		}
		return nil
	})
	reached(false)
}
