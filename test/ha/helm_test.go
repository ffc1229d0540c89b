//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/test/charts"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// slowChart is a ConfigMap, and what values make of it: hooks whose pods wait until the scenario lets them run, and an
// object that the API refuses.
func slowChart() charts.Chart {
	return charts.New("slow", "1.0.0", "").With("values.yaml", "greeting: none\nslow: false\nbroken: false\n").
		With("templates/config.yaml", `
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}}
data: {greeting: {{ .Values.greeting | quote }}}
`).
		With("templates/broken.yaml", `
{{ if .Values.broken }}
apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}}
spec: {ports: [{port: 70000}]}
{{ end }}
`).
		With("templates/hook.yaml", `
{{ if .Values.slow }}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}
  annotations: {helm.sh/hook: "post-install,post-upgrade,pre-delete", helm.sh/hook-delete-policy: before-hook-creation}
spec:
  template:
    spec:
      schedulingGates: [{name: example.com/let-go}]
      terminationGracePeriodSeconds: 1
      restartPolicy: Never
      containers: [`+harness.BoxYAML+`, command: ["true"]}]
{{ end }}
`)
}

// helmScenario is charts on a cluster, asked about at one of its servers.
type helmScenario struct {
	t    *testing.T
	kube *harness.Kube
	api  kubernetes.Interface
}

func (h *helmScenario) ask(c *Cluster, s *harness.Server) {
	h.kube, h.api = s.In(h.t), c.Ask(s)
}

// apply makes a HelmChart what this spec says, with the slow chart's own archive unless it names another chart.
func (h *helmScenario) apply(name, values, chart string) {
	h.t.Helper()
	if chart == "" {
		chart = "chartContent: " + base64.StdEncoding.EncodeToString(slowChart().Archive())
	}
	manifest := fmt.Sprintf("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: %s}\nspec:\n  %s\n  valuesContent: '{%s}'\n", name, chart, values)
	harness.Eventually(h.t, soon, "the HelmChart "+name+" is taken", func() error { // the kind comes with the first node
		return harness.Succeeds(h.kube.TryApply(manifest))
	})
}

// await waits until a chart is ready for a reason, in its newest generation, and a condition has these words.
func (h *helmScenario) await(name, reason, words string) {
	h.t.Helper()
	what := fmt.Sprintf("HelmChart %s: %s %s", name, reason, words)
	harness.Eventually(h.t, soon, what, func() error { return h.ready(name, reason, words) })
}

// ready fails unless a chart is as await wants it.
func (h *helmScenario) ready(name, reason, words string) error {
	const ready = `.status.conditions[?(@.type=="Ready")]`
	const path = `jsonpath={.metadata.generation}/{` + ready + `.observedGeneration}/{` + ready + `.reason}/{.status.conditions[*].message}`
	got, err := h.kube.Try("get", "helmchart", name, "-o", path)
	if f := strings.SplitN(got, "/", 4); err == nil && (len(f) != 4 || f[0] != f[1] || f[2] != reason || !strings.Contains(f[3], words)) {
		err = fmt.Errorf("generation, the condition's, its reason and all messages are %s", got)
	}
	return err
}

// revision returns the words "Revision N " of a chart's message.
func (h *helmScenario) revision(name string) string {
	h.t.Helper()
	message := h.kube.Insists("get", "helmchart", name, "-o", "jsonpath={.status.conditions[*].message}")
	return regexp.MustCompile(`Revision \d+ `).FindString(message)
}

func (h *helmScenario) greets(name, want string) {
	h.t.Helper()
	testenv.Equal(h.t, h.kube.Insists("get", "configmap", name, "-o", "jsonpath={.data.greeting}"), want, "the release %s has the greeting", name)
}

// begun waits for the Job of a chart's hook that is another one than before.
func (h *helmScenario) begun(name string, before types.UID) types.UID {
	h.t.Helper()
	var job *batchv1.Job
	harness.Eventually(h.t, soon, "the hook of "+name+" has begun", func() (err error) {
		if job, err = h.job(name, before); err == nil && job.Status.Active != 1 {
			err = errors.New("its pod is not there")
		}
		return err
	})
	return job.UID
}

func (h *helmScenario) job(name string, before types.UID) (*batchv1.Job, error) {
	job, err := h.api.BatchV1().Jobs("default").Get(h.t.Context(), name, metav1.GetOptions{})
	if err == nil && job.UID == before {
		err = errors.New("the Job is the one of before")
	}
	return job, err
}

// finish lets the pods of a chart's hook run, which is another one than before, until the chart is deployed, and
// returns its Job. Helm may begin the hook several times, as with awaitGone.
func (h *helmScenario) finish(name string, before types.UID) types.UID {
	h.t.Helper()
	var job *batchv1.Job
	harness.Eventually(h.t, harness.Longer, "the hook of "+name+" is done", func() (err error) {
		if job, err = h.job(name, before); err != nil {
			return err
		}
		return errors.Join(h.letGo(h.t.Context(), job), h.ready(name, "Deployed", "Revision "))
	})
	return job.UID
}

// letGo takes the gates from a Job's pods.
func (h *helmScenario) letGo(ctx context.Context, job *batchv1.Job) error {
	pods, err := h.api.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: batchv1.ControllerUidLabel + "=" + string(job.UID)})
	if err != nil {
		return err
	}
	for i := range pods.Items {
		if p := &pods.Items[i]; len(p.Spec.SchedulingGates) > 0 {
			p.Spec.SchedulingGates = nil
			if _, err := h.api.CoreV1().Pods("default").Update(ctx, p, metav1.UpdateOptions{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitDeleted waits until a HelmChart is gone, and looks for what its release has left. Each hook that Helm begins
// after the one of before may run: a leader that is deposed, or an uninstallation that fails, makes Helm begin again,
// with a Job whose pods have gates of their own.
func (h *helmScenario) awaitDeleted(name string, before types.UID) {
	h.t.Helper()
	harness.Eventually(h.t, harness.Longer, "HelmChart "+name+" is removed", func() error {
		chart, err := h.kube.Try("get", "helmchart", name, "--ignore-not-found", "-o", "jsonpath={.metadata.name} {.status}")
		if err != nil || chart == "" {
			return err
		}
		job, err := h.job(name, before)
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("it has no Job, and says %s", chart)
		}
		if err == nil {
			err = h.letGo(h.t.Context(), job)
		}
		if err != nil {
			return err
		}
		return fmt.Errorf("its Job %s has the status %+v, and it says %s", job.UID, job.Status, chart)
	})
	testenv.Equal(h.t, h.kube.Insists("get", "secrets", "-l", "owner=helm,name="+name, "-o", "name"), "", "the release %s has left", name)
	testenv.Equal(h.t, h.kube.Insists("get", "configmap", name, "--ignore-not-found", "-o", "name"), "", "the release %s has left", name)
}

// TestHelmLeaderKilled: the server that leads is killed while hooks of an installation, an upgrade and two removals are
// under way, and the next one brings each to its end. It lacks the file of a chart that is installed, which stays as it
// is. And a first installation that fails half-way is mended by other values.
func TestHelmLeaderKilled(t *testing.T) {
	c := New(t, 3, 1)
	h := &helmScenario{t: t}
	leader := c.MustLeader()
	h.ask(c, leader)
	file := func(s *harness.Server) string { return filepath.Join(s.DataDir, "charts", "slow-1.0.0.tgz") }
	for _, s := range c.Servers {
		testenv.NoError(t, os.MkdirAll(filepath.Dir(file(s)), 0o755))
		testenv.NoError(t, os.WriteFile(file(s), slowChart().Archive(), 0o644))
	}
	h.apply("file", "greeting: file", "chart: slow-1.0.0.tgz")
	h.apply("old", "greeting: before", "")
	h.await("file", "Deployed", "Revision ") // of a number above 1 where another server took the lead meanwhile
	h.await("old", "Deployed", "Revision ")
	revision := h.revision("file")
	h.apply("new", "greeting: hello, slow: true", "")
	h.apply("old", "greeting: after, slow: true", "")
	install, upgrade := h.begun("new", ""), h.begun("old", "")

	leader = c.MustLeader()
	rest := Without(c.Servers, leader)
	for _, s := range rest {
		testenv.NoError(t, os.Remove(file(s)))
	}
	leader.Kill()
	h.ask(c, rest[0])
	install, upgrade = h.finish("new", install), h.finish("old", upgrade)
	h.greets("new", "hello")
	h.greets("old", "after")
	h.await("file", "Deployed", "has no file slow-1.0.0.tgz among its charts")
	h.await("file", "Deployed", revision)
	leader.Start()
	c.WaitWhole()

	h.kube.Insists("delete", "helmchart", "new", "old", "--wait=false")
	install, upgrade = h.begun("new", install), h.begun("old", upgrade)
	leader = c.MustLeader() // only now: it may have been another server when the first hook began
	leader.Kill()
	h.ask(c, Without(c.Servers, leader)[0])
	h.awaitDeleted("new", install)
	h.awaitDeleted("old", upgrade)

	h.apply("half", "broken: true", "")
	h.await("half", "InstallFailed", "Invalid value: 70000")
	h.apply("half", "greeting: mended", "")
	h.await("half", "Deployed", "Revision ")
	h.greets("half", "mended")
}
