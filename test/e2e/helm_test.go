//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/charts"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// webChart is a Deployment, and what values make of it: one that breaks it half-way, and a hook that never ends.
func webChart(version string) charts.Chart {
	return charts.New("web", version, "").With("values.yaml", "greeting: none\nreplicas: 1\nbroken: false\nhang: false\n").
		With("templates/config.yaml", `
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-greeting}
data: {greeting: {{ .Values.greeting | quote }}, version: {{ .Chart.Version | quote }}}
`).
		With("templates/web.yaml", `
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [`+boxYAML+`, command: [testbox, serve]}]
`).
		With("templates/broken.yaml", `
{{ if .Values.broken }}
apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}-broken}
spec: {ports: [{port: 70000}]}
{{ end }}
`).
		With("templates/hook.yaml", `
{{ if .Values.hang }}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-hook
  annotations: {helm.sh/hook: post-install, helm.sh/hook-delete-policy: before-hook-creation}
spec:
  template:
    spec:
      terminationGracePeriodSeconds: 1
      restartPolicy: Never
      containers: [`+boxYAML+`, command: [testbox, hold]}]
{{ end }}
`)
}

// helmChart is a HelmChart as YAML.
func helmChart(name, spec string) string {
	return "apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: " + name + "}\nspec:\n" + indent(spec, 2) + "\n"
}

const (
	readyGeneration = `{.status.conditions[?(@.type=="Ready")].observedGeneration}`
	readyReason     = `{.status.conditions[?(@.type=="Ready")].reason}`
	readyMessage    = `{.status.conditions[?(@.type=="Ready")].message}`
)

// awaitChart waits until a chart says so of what it is now, and returns what it says beside: a moment later it may be
// tried again.
func awaitChart(k *harness.Kube, name, reason string) (message string) {
	k.T.Helper()
	harness.Eventually(k.T, longer, "HelmChart "+name+": "+reason, func() error {
		got, err := k.Try("get", "helmchart", name, "-o", `jsonpath={.metadata.generation} `+readyGeneration+" "+readyReason+" "+readyMessage)
		f := strings.SplitN(got, " ", 4)
		if err == nil && (len(f) != 4 || f[0] != f[1] || f[2] != reason) {
			err = fmt.Errorf("generation, the condition's, its reason and message are %q", got)
		}
		if err == nil {
			message = f[3]
		}
		return err
	})
	return message
}

// TestHelmCharts takes charts that are objects of the API through what becomes of them: from a folder, a repository, a
// registry and an object's own archive, with good and bad input, while the server is killed; nothing comes from outside
// the machine.
func TestHelmCharts(t *testing.T) {
	m := harness.NewMachine(t)
	s := m.NewServer()
	s.AddBoxImage()
	put := func(text []byte, path ...string) {
		t.Helper()
		name := filepath.Join(append([]string{m.Dir}, path...)...)
		testenv.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		testenv.NoError(t, os.WriteFile(name, text, 0o644))
	}
	put(webChart("1.0.0").Archive(), "data", "static", "charts", "web-1.0.0.tgz")
	put([]byte(helmChart("folder", "chart: https://%{KUBERNETES_API}%/static/charts/web-1.0.0.tgz\ntargetNamespace: folder\ncreateNamespace: true\nset: {replicas: 0}")),
		"data", "manifests", "folder.yaml")
	for _, version := range []string{"1.0.0", "2.0.0"} {
		put(webChart(version).Archive(), "repository", "web-"+version+".tgz")
	}
	index := testenv.Must(charts.Index(filepath.Join(m.Dir, "repository")))(t)
	put(index, "repository", "index.yaml")
	ctx, cancel := context.WithCancel(context.Background())
	repository := m.Command(ctx, "/bin/busybox", "httpd", "-f", "-p", "127.0.0.1:8879", "-h", filepath.Join(m.Dir, "repository"))
	testenv.NoError(t, repository.Start())
	defer func() { cancel(); _ = repository.Wait() }() // it was killed

	ca := startChartServer(t, m, filepath.Join(m.Dir, "repository"))

	s.StartNode()
	k := s.Namespace(t, "charts")
	chartOfFolder(k)
	chartOfRepository(k)
	chartByHand(k)
	chartsOfPrivateServer(k, filepath.Join(m.Dir, "repository", "web-1.0.0.tgz"), ca)
	chartsOfBadInput(k)
	put(webChart("1.1.0").Archive(), "data", "static", "charts", "web-1.0.0.tgz") // another file in the place of that which was installed
	k.Server.In(t).Becomes(longer, "1.1.0", "get", "-n", "folder", "configmap/folder-greeting", "-o", "jsonpath={.data.version}")
	chartOfKilledServer(k)
	var releases string
	testenv.NoError(t, harness.Reaching(func() (err error) {
		releases, err = m.Run(m.Coracle(), "helm", "--kubeconfig", s.Kubeconfig, "list", "-A")
		return err
	}))
	harness.Says(t, releases, "folder", "web-2.0.0", "deployed", "itself")
	harness.Eventually(t, soon, "the status knows of three charts", func() error { // it is reported after the chart's own
		out, err := m.Run(m.Coracle(), "status", "--data-dir", s.DataDir)
		if err == nil && (!strings.Contains(out, "helm charts") || !strings.Contains(out, "3 charts")) {
			err = errors.New(out)
		}
		return err
	})

	s.ReservedListeners(8879, 8880) // where the repository and the chart server of this test listen
	s.Kubectl("delete", "helmcharts", "--all", "-A", "--timeout=300s")
	for _, what := range []string{"deployments", "secrets"} {
		testenv.Equal(t, k.Kubectl("get", what, "-o", "name"), "", "charts that are gone have left")
	}
	harness.Eventually(t, soon, "the charts' events", func() error { // they are written after what they tell of
		out, err := k.Try("get", "events", "--field-selector=involvedObject.kind=HelmChart")
		for _, reason := range []string{"Installed", "Upgraded", "Recovered", "Uninstalled", "InvalidValues"} {
			if err == nil && !strings.Contains(out, reason) {
				err = fmt.Errorf("no %s among\n%s", reason, out)
			}
		}
		return err
	})
}

// chartOfFolder: a manifest of the folder names a file of the folder of charts. There were no kinds when it was read.
func chartOfFolder(k *harness.Kube) {
	k.T.Helper()
	k.Server.In(k.T).Becomes(longer, "Deployed", "get", "-n", "default", "helmchart/folder", "-o", "jsonpath="+readyReason)
	harness.Says(k.T, k.Server.Kubectl("get", "-n", "folder", "configmap/folder-greeting", "-o", "jsonpath={.data.version}"), "1.0.0")
	harness.Says(k.T, k.Server.Kubectl("get", "-n", "default", "helmchart/folder"), "REPO", "CHART", "TARGETNAMESPACE", "FAILED", "folder", "False", "True")
}

// chartOfRepository: installed, upgraded by values and by a HelmChartConfig, broken, mended.
func chartOfRepository(k *harness.Kube) {
	k.T.Helper()
	spec := "repo: http://127.0.0.1:8879\nchart: web\nfailurePolicy: retry\nversion: "
	k.Apply(helmChart("web", spec+"1.0.0\nvaluesContent: 'greeting: hello'"))
	awaitChart(k, "web", "Deployed")
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=300s")
	k.Await(soon, "configmap/web-greeting", "{.data.greeting} {.data.version}", "hello 1.0.0")

	k.Apply(helmChart("web", spec+"'>=1'\nvaluesContent: 'greeting: hello'\nset: {replicas: 2}"))
	awaitChart(k, "web", "Deployed")
	k.Await(soon, "configmap/web-greeting", "{.data.greeting} {.data.version}", "hello 2.0.0")
	k.Await(soon, "deployment/web", "{.spec.replicas}", "2")
	k.Apply("apiVersion: helm.cattle.io/v1\nkind: HelmChartConfig\nmetadata: {name: web}\nspec: {valuesContent: 'greeting: configured'}")
	k.Await(longer, "configmap/web-greeting", "{.data.greeting}", "configured")

	k.Apply(helmChart("web", spec+"2.0.0\nvaluesContent: 'broken: true'"))
	awaitChart(k, "web", "UpgradeFailed")
	k.Apply(helmChart("web", spec+"2.0.0\nvaluesContent: 'broken: false'"))
	awaitChart(k, "web", "Deployed")
	k.Await(soon, "deployment/web", "{.status.readyReplicas}", "1")
}

// chartsOfBadInput fail, say why, and can be deleted.
func chartsOfBadInput(k *harness.Kube) {
	k.T.Helper()
	k.Apply(helmChart("no-archive", "chartContent: "+base64.StdEncoding.EncodeToString([]byte("this is no archive"))))
	k.Apply(helmChart("no-yaml", "repo: http://127.0.0.1:8879\nchart: web\nvaluesContent: '{{'"))
	k.Apply(helmChart("no-chart", "repo: http://127.0.0.1:8879\nchart: missing"))
	awaitChart(k, "no-archive", "InvalidChart")
	awaitChart(k, "no-yaml", "InvalidValues")
	awaitChart(k, "no-chart", "ChartNotFound")
	k.Kubectl("delete", "helmchart", "no-archive", "no-yaml", "no-chart", "--timeout=300s")
}

// chartOfKilledServer: a chart with its own archive has a hook that never ends, and the server is killed while it is
// waited for. The next one takes it up, the hook stalls again, and other values mend it.
func chartOfKilledServer(k *harness.Kube) {
	k.T.Helper()
	content := "chartContent: " + base64.StdEncoding.EncodeToString(webChart("1.0.0").Archive()) + "\nvaluesContent: "
	k.Apply(helmChart("itself", content+"'hang: true'"))
	k.Await(longer, "job/itself-hook", "{.status.active}", "1")
	k.Kill()
	harness.Eventually(k.T, longer, "the child ends with the server", func() error { return k.NoProcess("coracle-tool[s] helmjob") })
	k.StartNode()
	awaitChart(k, "itself", "Working")
	k.Kubectl("patch", "helmchart", "itself", "--type=merge", "-p", `{"spec":{"valuesContent":"greeting: again"}}`)
	awaitChart(k, "itself", "Deployed")
	k.Await(soon, "configmap/itself-greeting", "{.data.greeting}", "again")
	harness.Eventually(k.T, longer, "its pod runs", func() error {
		_, err := k.Try("rollout", "status", "deployment/itself", "--timeout=10s")
		return err
	})
}
