//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/creack/pty"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var webDeployment = harness.Workload("Deployment", "web", "replicas: 3", `
  terminationGracePeriodSeconds: 3,
  containers: [{name: box, image: %s, imagePullPolicy: Never, command: [testbox, serve], env: [{name: GENERATION, value: "%s"}],
  readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 60}}]`) + `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

// deployment: three replicas answer behind a Service and its DNS name, a roll-out is undone.
func deployment(k *harness.Kube) {
	k.Apply(fmt.Sprintf(webDeployment, harness.BoxImage, "one"))
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=300s")
	k.Apply(pod("client", "[testbox, hold]", "", ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=180s")
	ip := k.Kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	for _, host := range []string{"web", "web." + k.NS, "web." + k.NS + ".svc.cluster.local", ip} {
		answered := map[string]bool{}
		for range 30 {
			if len(answered) == 3 && host != ip {
				break
			}
			answered[k.Kubectl("exec", "client", "--", "testbox", "get", "http://"+host+"/", "120")] = true
			if host != ip {
				break
			}
			if len(answered) == 3 {
				break
			}
		}
		for pod := range answered {
			testenv.True(k.T, strings.HasPrefix(pod, "web-"), "%s answered %q", host, pod)
		}
		testenv.False(k.T, host == ip && len(answered) != 3, "thirty requests to %s reached %d of three pods", ip, len(answered))
	}
	k.Apply(fmt.Sprintf(webDeployment, harness.BoxImage, "two"))
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=300s")
	// The Service proxy hears of a pod's end a moment after the roll-out does.
	k.Prints([]string{"two"}, "exec", "client", "--", "testbox", "get", "http://web/env/GENERATION", "120")
	k.Kubectl("rollout", "undo", "deployment/web")
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=300s")
	k.Prints([]string{"one"}, "exec", "client", "--", "testbox", "get", "http://web/env/GENERATION", "120")
	k.Prints([]string{"3 desired | 3 updated | 3 total | 3 available", "ScalingReplicaSet"}, "describe", "deployment", "web") // events are written after the deed
	k.Prints([]string{"Started", "Ready             True"}, "describe", "pod", "-l", "app=web")
	k.Kubectl("scale", "deployment/web", "--replicas=1")
	k.Await(soon, "deployment/web", "{.status.readyReplicas}", "1")
}

// interactive: exec with a terminal, logs that follow, a forwarded port.
func interactive(k *harness.Kube) {
	k.Apply(pod("shell", "[testbox, serve]", "", ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/shell", "--timeout=180s")
	ctx, cancel := context.WithTimeout(context.Background(), longer)
	defer cancel()

	exec := k.KubectlCommand(ctx, "-n", k.NS, "exec", "-it", "shell", "--", "sh")
	terminal := testenv.Must(pty.Start(exec))(k.T)
	defer terminal.Close()
	fmt.Fprint(terminal, "echo $((40+2)) on $(tty)\nexit 7\n")
	output, _ := io.ReadAll(terminal) // a terminal whose other side is gone reads as an error
	contains(k, string(output), "42 on /dev/pts/")
	if err := exec.Wait(); err == nil || exec.ProcessState.ExitCode() != 7 {
		k.T.Errorf("exec ended with %v, want exit code 7", err)
	}
	if out, err := k.Try("exec", "shell", "--", "sh", "-c", "echo out; echo err >&2; exit 3"); err == nil || out != "out" {
		k.T.Errorf("exec without a terminal: %q, %v", out, err)
	}

	logs := k.KubectlCommand(ctx, "-n", k.NS, "logs", "-f", "shell")
	pipe := testenv.Must(logs.StdoutPipe())(k.T)
	testenv.NoError(k.T, logs.Start())
	lines := bufio.NewScanner(pipe)
	testenv.False(k.T, !lines.Scan() || !strings.Contains(lines.Text(), "serving on 8080"), "the first followed line is %q", lines.Text())
	go func() { // what follows sees whether it did
		_ = harness.Reaching(func() error { return testenv.Err(k.Try("delete", "pod", "shell", "--wait=false")) })
	}()
	testenv.False(k.T, !lines.Scan() || !strings.Contains(lines.Text(), "asked to stop"), "the last followed line is %q", lines.Text())
	testenv.Check(k.T, logs.Wait(), "logs -f")

	// kubectl port-forward ends at the first connection that is refused.
	const answers = "readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 60}"
	k.Apply(pod("forwarded", "[testbox, serve]", answers, ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/forwarded", "--timeout=180s")
	ctx, cancel = context.WithTimeout(context.Background(), longer)
	defer cancel()
	forward := k.KubectlCommand(ctx, "-n", k.NS, "port-forward", "pod/forwarded", ":8080")
	pipe = testenv.Must(forward.StdoutPipe())(k.T)
	testenv.NoError(k.T, forward.Start())
	var port int
	if line, err := bufio.NewReader(pipe).ReadString('\n'); err != nil {
		k.T.Fatal(err)
	} else if _, err := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d", &port); err != nil {
		k.T.Fatalf("%q: %v", line, err)
	}
	for range 3 {
		out, err := k.Run(harness.Box(k.T), "get", fmt.Sprintf("http://127.0.0.1:%d/", port), "120")
		testenv.False(k.T, err != nil || strings.TrimSpace(out) != "forwarded", "through the forwarded port: %q, %v", out, err)
	}
	cancel()
	_ = forward.Wait()
}

// copyFiles: kubectl cp in both directions keeps the bytes.
func copyFiles(k *harness.Kube) {
	k.Apply(pod("store", "[testbox, hold]", "", ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/store", "--timeout=180s")
	dir := k.T.TempDir()
	want := strings.Repeat("0123456789abcdef\n", 100_000)
	testenv.NoError(k.T, os.WriteFile(filepath.Join(dir, "up"), []byte(want), 0o644))
	k.Kubectl("cp", filepath.Join(dir, "up"), "store:/tmp/there")
	k.Kubectl("cp", "store:/tmp/there", filepath.Join(dir, "down"))
	got, err := os.ReadFile(filepath.Join(dir, "down"))
	testenv.False(k.T, err != nil || string(got) != want, "%d bytes came back of %d, %v", len(got), len(want), err)
}

// watch: get -w prints a change while it runs.
func watch(k *harness.Kube) {
	k.Kubectl("create", "configmap", "seen", "--from-literal=a=1")
	ctx, cancel := context.WithTimeout(context.Background(), longer)
	defer cancel()
	w := k.KubectlCommand(ctx, "-n", k.NS, "get", "configmap", "seen", "-w", "-o", "jsonpath={.data.a}{'\\n'}")
	pipe := testenv.Must(w.StdoutPipe())(k.T)
	testenv.NoError(k.T, w.Start())
	lines := bufio.NewScanner(pipe)
	for i, want := range []string{"1", "2", "3"} {
		if i > 0 {
			k.Kubectl("patch", "configmap", "seen", "-p", `{"data":{"a":"`+want+`"}}`)
		}
		testenv.Require(k.T, lines.Scan() && lines.Text() == want, "watch printed %q, want %q", lines.Text(), want)
	}
	cancel()
	_ = w.Wait()
}

// dns: names inside and outside the cluster, headless Services, a pod on the host's network.
func dns(k *harness.Kube) {
	k.Apply(pod("client", "[testbox, hold]", "", ""))
	k.Apply(pod("hosted", "[testbox, hold]", "", "hostNetwork: true\ndnsPolicy: ClusterFirstWithHostNet"))
	k.Apply(pod("named", "[testbox, serve]", "", "hostname: first\nsubdomain: flock"))
	k.Apply(`{apiVersion: v1, kind: Service, metadata: {name: flock}, spec: {clusterIP: None, selector: {app: named}, ports: [{port: 8080}]}}`)
	k.Kubectl("wait", "--for=condition=Ready", "pod/client", "pod/hosted", "pod/named", "--timeout=180s")
	podIP := k.Kubectl("get", "pod", "named", "-o", "jsonpath={.status.podIP}")
	for _, from := range []string{"client", "hosted"} {
		for name, want := range map[string]string{
			"kubernetes.default.svc.cluster.local": "10.43.0.1", "kube-dns.kube-system": "10.43.0.10",
			"flock": podIP, "first.flock": podIP,
		} {
			k.Becomes(soon, want, "exec", from, "--", "testbox", "lookup", name)
		}
	}
	start := time.Now()
	if out, err := k.Try("exec", "client", "--", "testbox", "lookup", "absent.default.svc.cluster.local"); err == nil {
		k.T.Errorf("a name that does not exist is %q", out)
	}
	k.T.Logf("a name that does not exist: %v", time.Since(start).Round(time.Millisecond))
}

// customDNS: the ConfigMap coredns-custom adds names and zones, is followed, and keeps what worked where it makes a
// mistake.
func customDNS(k *harness.Kube) {
	k.Apply(pod("asker", "[testbox, hold]", "", ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/asker", "--timeout=180s")
	system := &harness.Kube{Server: k.Server, T: k.T, NS: "kube-system"}
	resolves := func(name, want string) {
		k.T.Helper()
		k.Becomes(soon, want, "exec", "asker", "--", "testbox", "lookup", name)
	}
	configure := func(override, server string) {
		k.T.Helper()
		system.Apply(fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: coredns-custom}, data: {nas.override: %q, corp.server: %q}}", override, server))
	}
	const nas, corp = "hosts {\n  192.168.1.%d nas.home nas.cluster.local\n  fallthrough\n}\n", "corp.example:53 {\n  hosts {\n    192.0.2.%d git.corp.example\n  }\n}\n"
	configure(fmt.Sprintf(nas, 20), fmt.Sprintf(corp, 1))
	resolves("nas.home", "192.168.1.20")
	resolves("git.corp.example", "192.0.2.1")
	configure(fmt.Sprintf(nas, 21), fmt.Sprintf(corp, 2))
	resolves("nas.home", "192.168.1.21")
	resolves("git.corp.example", "192.0.2.2")
	resolves("nas.cluster.local", "192.168.1.21")

	configure(fmt.Sprintf(nas, 22)+"nonsense\n", fmt.Sprintf(corp, 3))
	resolves("git.corp.example", "192.0.2.3") // the other key is followed
	system.Prints([]string{"nas.override"}, "get", "events", "--field-selector",
		"involvedObject.name=coredns-custom,reason=BadDNSConfiguration", "-o", "jsonpath={.items[*].message}")
	resolves("nas.home", "192.168.1.21")
	system.Kubectl("delete", "configmap", "coredns-custom")
	harness.Eventually(k.T, soon, "the names are gone", func() error { // no resolver is asked for this one
		if got, err := k.Try("exec", "asker", "--", "testbox", "lookup", "nas.cluster.local"); err == nil {
			return fmt.Errorf("it is still %s", got)
		}
		return nil
	})
	resolves("kubernetes.default", "10.43.0.1")
}
