//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// planted is in every secret of this test.
const planted = "plumtree"

// plantedLog is what programs of all kinds have in their logs.
const plantedLog = `msg="connecting" dsn=postgres://app:plumtree@db/app password="plumtree" token=plumtree
Authorization: Basic cGx1bXRyZWU6cGx1bXRyZWU=
{"auth":{"token":"plumtree"},"env":["A=plumtree"],"level":"info"}
-----BEGIN PRIVATE KEY-----
cGx1bXRyZWVwbHVtdHJlZXBsdW10cmVlcGx1bXRyZWVwbHVtdHJlZXBsdW10cmVl
cGx1bXRyZWU=
-----END PRIVATE KEY-----
msg="the end of what was planted"
`

// TestBugReport: the archive for a bug report has the state of a server and of an agent, and nothing that is secret;
// also while the server is stopped in the midst of everything, and while none runs.
func TestBugReport(t *testing.T) {
	t.Parallel()
	site := harness.NewSite(t)
	m := site.NewMachine()
	registries, settings, log := filepath.Join(m.Dir, "registries.yaml"), filepath.Join(m.Dir, "config.yaml"), filepath.Join(m.Dir, "coracle.log")
	testenv.NoError(t, os.WriteFile(registries, []byte("configs: {registry.example.org: {auth: {username: plumtree, password: plumtree-registry}}}\n"), 0o600))
	testenv.NoError(t, os.WriteFile(settings, []byte("log: "+log+"\nsnapshot-s3-access-key: plumtree-access\nsnapshot-s3-secret-key: plumtree-secret\n"), 0o600))
	m.Env = append(m.Env, "DB_PASSWORD=plumtree-environment", "CORACLE_CONFIG_FILE="+settings)
	s := m.NewServer("--private-registry", registries)
	s.AddBoxImage()
	s.StartNode()
	a := site.NewMachine().NewAgent(s)
	a.AddBoxImage()
	a.Start()
	harness.Eventually(t, longer, "the agent's node is ready", func() error { return s.NodeReady(a) })
	plant(t, s, a)

	files := collect(t, s)
	for name, want := range map[string]string{
		"README.txt": "LOOK THROUGH IT", "status/status.txt": "API server", "status/check.txt": "kernel", "config/settings.txt": "snapshot-s3-secret-key = ***",
		"config/registries.txt": "registry.example.org: login true", "process/stacks.txt": "goroutine ", "log/coracle.log": "the end of what was planted",
		"api/nodes.txt": a.NodeName(), "api/pods.txt": "keeper", "api/events.txt": "Unhealthy", "api/configmaps.txt": "default/planted: key",
		"api/customresourcedefinitions.txt": "helmcharts.helm.cattle.io", "api/helmcharts.txt": "planted", "api/pod-conditions.json": `"Name": "keeper"`,
		"api/node-conditions.json": `"KubeletReady"`, "api/metrics.txt": "etcd_", "api/readyz.txt": "ok", "node/tasks.txt": "RUNNING", "node/images.txt": "pause",
		"node/kubelet-volumes.txt": "kubernetes.io~secret", "network/nftables.txt": "table ", "network/addresses.txt": s.IP, "host/mounts.txt": "overlay",
		"host/memory.txt": "MemTotal", "host/disks.txt": "Use%", "data/files.txt": "store",
	} {
		testenv.Contains(t, files[name], want, "the server's %s", name)
	}
	testenv.True(t, len(files["process/heap.pprof"]) > 0, "there is no profile of the heap")

	files = collect(t, a)
	for name, want := range map[string]string{
		"status/status.txt": "agent", "process/stacks.txt": "goroutine ", "api/pod-conditions.json": `"Name": "guest"`, "api/node-conditions.json": `"KubeletReady"`,
		"node/tasks.txt": "RUNNING", "network/addresses.txt": a.IP, "config/settings.txt": "token = ***",
	} {
		testenv.Contains(t, files[name], want, "the agent's %s", name)
	}

	s.Pause()
	files = collect(t, s)
	testenv.Contains(t, files["README.txt"], "the API server does not answer", "while the server does not run on, the README")
	testenv.Contains(t, files["network/addresses.txt"], s.IP, "while the server does not run on, the addresses")
	s.Resume()

	s.Kill()
	files = collect(t, s)
	testenv.Contains(t, files["README.txt"], "process/stacks.txt: coracle does not run on this machine", "without a server the README")
	testenv.Contains(t, files["status/status.txt"], "was killed or crashed", "without a server the status")
	testenv.Contains(t, files["log/coracle.log"], "the end of what was planted", "without a server the log")
	testenv.Contains(t, files["data/files.txt"], "store", "without a server the data")
}

// plant puts secrets in all places that the archive's content comes from.
func plant(t *testing.T, s, a *harness.Server) {
	t.Helper()
	s.Kubectl("create", "secret", "generic", "planted", "--from-literal=key=plumtree-secret")
	s.Kubectl("create", "configmap", "planted", "--from-literal=key=plumtree-configmap")
	s.Apply(fmt.Sprintf(`apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: planted, namespace: kube-system}
spec: {chart: "https://plumtree:plumtree@charts.invalid/a.tgz", valuesContent: "a: plumtree", set: {b: plumtree}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper, annotations: {note: plumtree}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: %q
    imagePullPolicy: Never
    command: [sh, -c, "echo plumtree; sleep 3600", plumtree]
    env: [{name: PLAIN, value: plumtree-environment}, {name: KEY, valueFrom: {secretKeyRef: {name: planted, key: key}}}]
    readinessProbe: {periodSeconds: 1, exec: {command: [sh, -c, "echo password=plumtree; exit 1"]}}
    volumeMounts: [{name: planted, mountPath: /planted}]
  volumes: [{name: planted, secret: {secretName: planted}}]
---
apiVersion: v1
kind: Pod
metadata: {name: guest}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: %[2]q, imagePullPolicy: Never, command: [sh, -c, "sleep 3600", plumtree], env: [{name: PLAIN, value: plumtree}]}]
`, s.NodeName(), harness.BoxImage, a.NodeName()))
	s.Kubectl("wait", "--for=condition=Ready", "pod/guest", "--timeout=180s")
	s.In(t).Becomes(longer, "Unhealthy", "get", "events", "--field-selector", "involvedObject.name=keeper,reason=Unhealthy", "-o", "jsonpath={.items[0].reason}")
	log := testenv.Must(os.OpenFile(s.Log, os.O_APPEND|os.O_WRONLY, 0))(t)
	defer log.Close()
	testenv.Must(log.WriteString(plantedLog))(t)
}

// collect returns the content of a machine's archive, by name, after it has looked through all of it for secrets.
func collect(t *testing.T, s *harness.Server) map[string]string {
	t.Helper()
	path := filepath.Join(s.Dir, "report.tar.gz")
	began := time.Now()
	out, err := s.Run(s.Coracle(), "debug", "collect", "--output", path, "--data-dir", s.DataDir)
	testenv.NoError(t, err, "%s", out)
	info := testenv.Must(os.Stat(path))(t)
	took := time.Since(began).Round(100 * time.Millisecond)
	testenv.Equal(t, info.Mode().Perm(), 0o600, "the archive's mode is")
	testenv.True(t, info.Size() < 20_000_000, "the archive has %d bytes", info.Size())
	f := testenv.Must(os.Open(path))(t)
	defer f.Close()
	files := map[string]string{}
	z := testenv.Must(gzip.NewReader(f))(t)
	for r := tar.NewReader(z); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		testenv.NoError(t, err)
		_, name, _ := strings.Cut(head.Name, "/")
		files[name] = string(testenv.Must(io.ReadAll(r))(t))
	}
	testenv.NoError(t, os.Remove(path))
	_, missing, _ := strings.Cut(files["README.txt"], "What is missing:")
	t.Logf("%d bytes in %v; missing is %s", info.Size(), took, missing)
	secrets := []string{planted, base64.StdEncoding.EncodeToString([]byte(planted))[:10], "PRIVATE KEY"}
	for _, file := range []string{"token", "agent-token"} {
		if text, err := os.ReadFile(s.Seen("server", file)); err == nil {
			secrets = append(secrets, tokenSecret(string(text)))
		}
	}
	for name, content := range files {
		for _, secret := range secrets {
			if at := strings.Index(content, secret); at >= 0 {
				t.Errorf("%s has a secret: …%s…", name, content[max(0, at-200):min(len(content), at+100)])
			}
		}
	}
	return files
}

// tokenSecret returns the secret of a token to join.
func tokenSecret(token string) string {
	return strings.TrimSpace(token[strings.LastIndexByte(token, ':')+1:])
}
