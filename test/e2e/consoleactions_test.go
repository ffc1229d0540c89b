//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// consoleActions: a browser of coracle console forwards a port to a pod, takes a Deployment back to an earlier
// revision, and attaches to a debug container.
func consoleActions(k *harness.Kube) {
	b := newBrowser(k)
	k.Apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: box, image: "` + harness.BoxImage + `", imagePullPolicy: Never, command: [testbox, serve], env: [{name: COLOR, value: green}],
         ports: [{name: http, containerPort: 8080}], readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: main, port: 80, targetPort: http}, {name: nobody, port: 81, targetPort: 9}]}
`)
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	k.Kubectl("set", "env", "deployment/web", "COLOR=blue")
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	k.Apply(`
apiVersion: v1
kind: Pod
metadata: {name: clock}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: ticks, image: "` + harness.BoxImage + `", imagePullPolicy: Never, command: [sh, -c, "while sleep 1; do echo tick; done"]}
  - {name: reads, image: "` + harness.BoxImage + `", imagePullPolicy: Never, stdin: true, command: [sh, -c, "read word; echo got $word; exec testbox hold"]}
`)
	k.Kubectl("wait", "--for=condition=Ready", "pod/clock", "--timeout=60s")
	attachedPrograms(b)
	forwardedPort(b)
	undoneRollout(b)
	debugContainer(b)
}

// forward opens a forward, and returns where it is.
func (b *browser) forward(path, port string) (address string, id int64) {
	b.T.Helper()
	var f struct{ ID, Local int64 }
	b.post("/forward", map[string]string{"path": path, "port": port}, &f)
	return fmt.Sprintf("127.0.0.1:%d", f.Local), f.ID
}

// forwardedPort: bytes pass to a pod, a port at which nothing listens is said, and the pod's end ends the forward.
func forwardedPort(b *browser) {
	at := "/api/v1/namespaces/" + b.NS + "/services/web"
	address, id := b.forward(at, "main")
	ask := func() (string, error) {
		ctx, cancel := context.WithTimeout(b.T.Context(), soon)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/env/COLOR", nil)
		if err != nil {
			return "", err
		}
		client := http.Client{Transport: &http.Transport{DialContext: b.Machine.Dial, DisableKeepAlives: true}}
		response, err := client.Do(r)
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		return strings.TrimSpace(string(text)), err
	}
	for range 3 {
		if got, err := ask(); got != "blue" {
			b.T.Errorf("the pod behind the port says %q, %v", got, err)
		}
	}
	silent, _ := b.forward(at, "nobody")
	conn := testenv.Must(b.Machine.Dial(b.T.Context(), "tcp", silent))(b.T)
	_ = conn.SetDeadline(time.Now().Add(longer))
	if got, err := io.ReadAll(conn); len(got) > 0 {
		b.T.Errorf("nothing listens, and there is %q, %v", got, err)
	}
	_ = conn.Close()
	type forward struct {
		Opened, Failed int64
		Error, Ended   string
	}
	forwards := func() []forward {
		var out struct{ Forwards []forward }
		_, text := b.try(http.MethodGet, "/forwards", nil)
		testenv.NoError(b.T, json.Unmarshal([]byte(text), &out))
		return out.Forwards
	}
	harness.Eventually(b.T, longer, "the failure is said", func() error {
		if all := forwards(); len(all) != 2 || all[0].Opened != 3 || all[0].Failed > 0 || all[1].Failed != 1 || !strings.Contains(all[1].Error, "refused") {
			return fmt.Errorf("the forwards are %+v", all)
		}
		return nil
	})
	if code, text := b.try(http.MethodDelete, fmt.Sprintf("/forward/%d", id), nil); code != http.StatusOK {
		b.T.Errorf("stopping: %d %s", code, text)
	}
	if got, err := ask(); err == nil {
		b.T.Errorf("a forward that was stopped says %q", got)
	}
	b.Kubectl("delete", "pod", "-l", "app=web")
	harness.Eventually(b.T, longer, "the pod's end ends the forward", func() error {
		if all := forwards(); len(all) != 1 || !strings.Contains(all[0].Ended, "deleted") {
			return fmt.Errorf("the forwards are %+v", all)
		}
		return nil
	})
}

// undoneRollout: a dry run says what changes, and the undo does it.
func undoneRollout(b *browser) {
	at := "/apis/apps/v1/namespaces/" + b.NS + "/deployments/web"
	var list struct {
		Revisions []struct {
			Number int64
			Images []string
		}
	}
	_, text := b.try(http.MethodGet, "/rollout?path="+at, nil)
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list.Revisions) != 2 || list.Revisions[0].Number != 2 || list.Revisions[1].Images[0] != harness.BoxImage {
		b.T.Fatalf("the revisions are %s", text)
	}
	var undone struct{ Diff string }
	b.post("/rollout/undo", map[string]any{"path": at, "revision": 1, "dryRun": true}, &undone)
	testenv.Contains(b.T, undone.Diff, "-          value: blue\n+          value: green\n", "the difference is")
	b.Await(soon, "deployment/web", "{.spec.template.spec.containers[0].env[0].value}", "blue") // that was a dry run
	b.post("/rollout/undo", map[string]any{"path": at, "revision": 1}, &undone)
	b.Await(soon, "deployment/web", "{.spec.template.spec.containers[0].env[0].value}", "green")
	b.Kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	b.Await(soon, "deployment/web", `{.metadata.annotations.deployment\.kubernetes\.io/revision}`, "3")
}

// attachedPrograms: the browser sees what a program writes that reads nothing, and types to one that does.
func attachedPrograms(b *browser) {
	at := "/api/v1/namespaces/" + b.NS + "/pods/clock/attach"
	ticks := b.stream(map[string]any{"op": "attach", "path": at, "query": map[string]string{"container": "ticks", "stdin": "false"}})
	b.until(ticks, "what the program writes", func(m map[string]any, _ string) bool { return m["data"] == "tick\n" && m["stream"] == 1.0 })
	reads := b.stream(map[string]any{"op": "attach", "path": at, "query": map[string]string{"container": "reads"}})
	testenv.NoError(b.T, reads.WriteJSON(map[string]any{"id": 1, "op": "stdin", "data": "hello\n"}))
	b.until(reads, "the program's answer", func(m map[string]any, _ string) bool { return m["data"] == "got hello\n" })
}

// debugContainer: a container with another program joins a pod, and the browser attaches to it.
func debugContainer(b *browser) {
	var pod string
	harness.Eventually(b.T, longer, "the pods of earlier revisions are gone", func() (err error) {
		pod, err = b.Try("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}")
		if err == nil && (pod == "" || strings.Contains(pod, " ")) {
			err = fmt.Errorf("there are %q", pod)
		}
		return err
	})
	at := "/api/v1/namespaces/" + b.NS + "/pods/" + pod
	body := map[string]any{"spec": map[string]any{"ephemeralContainers": []any{map[string]any{
		"name": "debugger-1", "image": harness.BoxImage, "imagePullPolicy": "IfNotPresent", "stdin": true, "tty": true, "targetContainerName": "box",
	}}}}
	if code, text := b.tryAs("application/strategic-merge-patch+json", http.MethodPatch, "/k8s"+at+"/ephemeralcontainers", body); code != http.StatusOK {
		b.T.Fatalf("the debug container: %d %s", code, text)
	}
	b.Await(longer, "pod/"+pod, "{.status.ephemeralContainerStatuses[?(@.state.running)].name}", "debugger-1")
	shell := b.stream(map[string]any{"op": "attach", "path": at + "/attach", "query": map[string]string{"container": "debugger-1"}, "tty": true})
	testenv.NoError(b.T, shell.WriteJSON(map[string]any{"id": 1, "op": "stdin", "data": "cat /proc/1/cmdline; exit\n"}))
	var output strings.Builder
	b.until(shell, "the debug container's shell", func(m map[string]any, _ string) bool {
		if text, isText := m["data"].(string); isText {
			output.WriteString(text)
		}
		return m["type"] == "exit"
	})
	testenv.Contains(b.T, output.String(), "testbox\x00serve", "the debug container does not see the processes of its target:")
}
