// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"github.com/coracle-k8s/coracle/controllers/helmcharts"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/recorder"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// charts is a term with the controller of Helm charts, whose engine is a test's. It keeps releases as Helm does,
// without anything in them.
type charts struct {
	*cluster
	t       *testing.T
	ns      string
	objects dynamic.Interface
	// wanted has the kinds defined: there are no nodes.
	wanted chan struct{}
	// retries is the pause after a first failure.
	retries time.Duration
	folder  string // of charts that are files
	age     int64  // of the file that was laid there last

	mu       sync.Mutex
	asked    []helmjob.Request
	do       func(context.Context, *helmjob.Request) (*helmjob.Result, error) // instead of what the engine does
	atWork   int
	tooMany  bool
	disabled bool
}

func newCharts(t *testing.T, name string) *charts {
	t.Helper()
	h := &charts{cluster: shared, t: t, wanted: make(chan struct{}, 1), retries: 10 * time.Millisecond}
	h.objects = testenv.Must(dynamic.NewForConfig(h.config))(t)
	h.ns = h.namespace1(name)
	h.folder = t.TempDir()
	return h
}

// namespace1 makes a namespace without waiting for what a term brings into it.
func (h *charts) namespace1(name string) string {
	h.t.Helper()
	testenv.Must(h.client.CoreV1().Namespaces().Create(h.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(h.t)
	return name
}

// begin leads until the function it returns is called.
func (h *charts) begin() (end func()) {
	h.t.Helper()
	h.wanted <- struct{}{}
	stop := h.lead(h.t.Context(), 1, h.part)
	var once sync.Once
	end = func() {
		once.Do(func() {
			testenv.Check(h.t, stop(), "the term ended with")
		})
	}
	h.t.Cleanup(end)
	return end
}

func (h *charts) part(ctx context.Context, t *term.Term) error {
	var errs [3]error
	o := helmcharts.Options{
		Informers: t.Informers, Engine: h.engine, FirstWait: h.retries, Wanted: h.wanted, Logger: quiet, Disabled: h.disabled,
		Folders: []string{h.folder}, FilesEvery: 20 * time.Millisecond, Server: "node-1", MinCheckPeriod: 20 * time.Millisecond,
		Recorder: recorder.New(ctx, h.client, "test"),
	}
	o.Client, errs[0] = kubernetes.NewForConfig(t.Config)
	o.Dynamic, errs[1] = dynamic.NewForConfig(t.Config)
	o.Metadata, errs[2] = metadata.NewForConfig(t.Config)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	c, err := helmcharts.New(o)
	if err != nil {
		return err
	}
	if !t.StartInformers(ctx) {
		return nil
	}
	return c.Run(ctx)
}

func (h *charts) engine(ctx context.Context, q *helmjob.Request) (*helmjob.Result, error) {
	h.mu.Lock()
	h.asked = append(h.asked, *q)
	h.atWork++
	h.tooMany = h.tooMany || h.atWork > helmcharts.AtOnce
	do := h.do
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.atWork--
		h.mu.Unlock()
	}()
	if do != nil {
		return do(ctx, q)
	}
	return h.helm(q)
}

// instead has this done from now on; nil is what Helm does.
func (h *charts) instead(do func(context.Context, *helmjob.Request) (*helmjob.Result, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.do = do
}

// requests are those so far.
func (h *charts) requests() []helmjob.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]helmjob.Request(nil), h.asked...)
}

func (h *charts) releases(namespace, name string) []corev1.Secret {
	list, err := h.client.CoreV1().Secrets(namespace).List(context.Background(), metav1.ListOptions{LabelSelector: "owner=helm,name=" + name})
	if err != nil {
		h.t.Error(err)
		return nil
	}
	return list.Items
}

// helm makes and removes a release's record. As Helm does, it makes the new one before it removes those before it: a
// release that is being upgraded is never gone.
func (h *charts) helm(q *helmjob.Request) (*helmjob.Result, error) {
	before := h.releases(q.Namespace, q.Release)
	done := &helmjob.Result{Action: helmjob.Uninstalled, Message: "Gone."}
	if q.Operation != helmjob.Uninstall {
		last, action := 0, helmjob.Installed
		for i := range before {
			n, err := strconv.Atoi(before[i].Labels["version"])
			if err != nil {
				return nil, err
			}
			last, action = max(last, n), helmjob.Upgraded
		}
		if err := h.record(q.Namespace, q.Release, last+1, "deployed"); err != nil {
			return nil, err
		}
		done = &helmjob.Result{Action: action, Message: "Done.", Release: &helmjob.Release{Revision: last + 1, Status: "deployed"}}
	}
	for i := range before {
		err := h.client.CoreV1().Secrets(q.Namespace).Delete(context.Background(), before[i].Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) { // the other one that is at work may have removed it
			return nil, err
		}
	}
	return done, nil
}

func (h *charts) record(namespace, release string, revision int, status string) error {
	_, err := h.client.CoreV1().Secrets(namespace).Create(context.Background(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("sh.helm.release.v1.%s.v%d", release, revision), Labels: map[string]string{
			"owner": "helm", "name": release, "version": fmt.Sprint(revision), "status": status,
		}}, Type: "helm.sh/release.v1",
	}, metav1.CreateOptions{})
	return err
}

func (h *charts) api() dynamic.ResourceInterface {
	return h.objects.Resource(kinds.Charts().Resource).Namespace(h.ns)
}

// create makes a HelmChart as soon as there is the kind.
func (h *charts) create(name string, spec map[string]any) {
	h.t.Helper()
	eventually(h.t, "the HelmChart "+name, func(ctx context.Context) error {
		_, err := h.api().Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "helm.cattle.io/v1", "kind": "HelmChart", "metadata": map[string]any{"name": name}, "spec": spec,
		}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

func (h *charts) patch(name, change string) {
	h.t.Helper()
	testenv.Must(h.api().Patch(h.t.Context(), name, types.MergePatchType, []byte(change), metav1.PatchOptions{}))(h.t)
}

// await waits until a chart is ready for some reason.
func (h *charts) await(name, reason string) *kinds.HelmChart {
	h.t.Helper()
	var chart *kinds.HelmChart
	eventually(h.t, name+" is "+reason, func(ctx context.Context) error {
		u, err := h.api().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if chart, err = kinds.ChartFrom(u); err != nil {
			chart = kinds.Outline(u) // some of these tests write what cannot be read
		}
		for _, c := range chart.Status.Conditions {
			if c.Type == kinds.Ready && c.Reason == reason && c.ObservedGeneration == chart.Generation {
				return nil
			}
		}
		return fmt.Errorf("it says %+v", chart.Status)
	})
	return chart
}

// removed removes a chart and waits until it is gone.
func (h *charts) removed(name string) {
	h.t.Helper()
	h.remove(name)
	eventually(h.t, name+" is gone", func(ctx context.Context) error {
		_, err := h.api().Get(ctx, name, metav1.GetOptions{})
		return gone(err)
	})
}

func (h *charts) remove(name string) {
	h.t.Helper()
	testenv.NoError(h.t, h.api().Delete(h.t.Context(), name, metav1.DeleteOptions{}))
}

// awaitEvent waits for an event of a chart that has these words.
func (h *charts) awaitEvent(chart, reason, words string) {
	h.t.Helper()
	eventually(h.t, "an event "+reason+" of "+chart, func(ctx context.Context) error {
		list, err := h.client.CoreV1().Events(h.ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var seen []string
		for _, e := range list.Items {
			if e.InvolvedObject.Name == chart && e.Reason == reason && strings.Contains(e.Message, words) {
				return nil
			}
			seen = append(seen, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("there are %q", seen)
	})
}

// awaitRevision waits until a chart's release has this revision and the chart says so.
func (h *charts) awaitRevision(name string, revision int64) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("revision %d of %s", revision, name), func(ctx context.Context) error {
		u, err := h.api().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		chart, err := kinds.ChartFrom(u)
		if err == nil && (chart.Status.Revision != revision || !strings.Contains(fmt.Sprint(chart.Status.Conditions), helmcharts.ReasonDeployed)) {
			err = fmt.Errorf("it says %+v", chart.Status)
		}
		return err
	})
}

func documents(q helmjob.Request) string {
	text, _ := json.Marshal(q.Values)
	return string(text)
}

func TestHelmCharts(t *testing.T) {
	h := newCharts(t, "charts")
	end := h.begin()
	t.Run("life", h.life)
	t.Run("values", h.values)
	t.Run("failures", h.failures)
	t.Run("strange objects", h.strange)
	t.Run("rivals", h.rivals)
	t.Run("deletion", h.deletion)
	t.Run("unmanaged", h.unmanaged)
	t.Run("files", h.files)
	t.Run("objects", h.checks)
	end()
	h.t = t
	t.Run("next term", h.nextTerm)
	t.Run("files of the next leader", h.filesOfNext)
	t.Run("disabled", h.withoutCharts)
	testenv.False(t, h.tooMany, "more children were at work at once than may be")
}

// life: a chart is installed, follows its spec, and is put back when others change or remove its release.
func (h *charts) life(t *testing.T) {
	h.t = t
	h.create("web", map[string]any{"chart": "web", "repo": "https://charts.example", "set": map[string]any{"replicas": int64(2), "word": "a,b"}})
	chart := h.await("web", helmcharts.ReasonDeployed)
	testenv.True(t, chart.Status.Revision == 1 && chart.Finalizers[0] == helmcharts.Finalizer,
		"the chart has %+v, %v", chart.Status, chart.Finalizers)
	q := h.requests()[0]
	if q.Chart.Repo != "https://charts.example" || q.Release != "web" || q.Namespace != h.ns || q.Set["replicas"] != intstr.FromInt32(2) || q.FailurePolicy != helmjob.Reinstall {
		t.Errorf("Helm was asked for %+v", q)
	}
	h.awaitEvent("web", "Installed", "Done.")
	h.patch("web", `{"spec":{"version":"2.0.0"}}`)
	h.awaitRevision("web", 2)

	t.Log("by others: a rollback, a removal, an operation that never ended")
	testenv.Must(h.helm(&helmjob.Request{Operation: helmjob.Apply, Namespace: h.ns, Release: "web"}))(t)
	h.awaitRevision("web", 4)
	if last := h.requests(); !last[len(last)-1].Upgrade {
		t.Error("a revision that others made was not replaced")
	}
	testenv.Must(h.helm(&helmjob.Request{Operation: helmjob.Uninstall, Namespace: h.ns, Release: "web"}))(t)
	h.awaitRevision("web", 1)
	s := h.releases(h.ns, "web")[0]
	s.Labels["status"] = "pending-upgrade"
	testenv.Must(h.client.CoreV1().Secrets(h.ns).Update(t.Context(), &s, metav1.UpdateOptions{}))(t)
	h.awaitRevision("web", 2)
	h.patch("web", `{"metadata":{"annotations":{"coracle.dev/reconcile":"1"}}}`)
	h.awaitRevision("web", 3)
	n := len(h.requests())
	h.patch("web", `{"metadata":{"annotations":{"example.com/other":"1"}}}`)
	h.removed("web")
	if all := h.requests(); len(all) != n+1 || all[n].Operation != helmjob.Uninstall {
		t.Errorf("an annotation that means nothing, and a removal, took %d requests", len(all)-n)
	}
	h.awaitEvent("web", "Uninstalled", "is not there")
}

// values: the order is k3s', Secrets and configs are followed, and what is missing is said.
func (h *charts) values(t *testing.T) {
	h.t = t
	h.create("ordered", map[string]any{
		"chart": "oci://registry.example/ordered", "valuesContent": "a: 1", "values": map[string]any{"b": int64(2)},
		"valuesSecrets": []any{map[string]any{"name": "more", "keys": []any{"x", "y"}}, map[string]any{"name": "perhaps", "keys": []any{"z"}, "ignoreUpdates": true}},
	})
	h.await("ordered", "SecretMissing")
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "more"}, StringData: map[string]string{"x": "c: 3"}}
	secrets := h.client.CoreV1().Secrets(h.ns)
	secret = testenv.Must(secrets.Create(t.Context(), secret, metav1.CreateOptions{}))(t)
	eventually(t, "the key is missed", func(ctx context.Context) error {
		if c := h.await("ordered", "SecretMissing"); !strings.Contains(fmt.Sprint(c.Status.Conditions), `no key "y"`) {
			return fmt.Errorf("it says %+v", c.Status)
		}
		return nil
	})
	secret.StringData = map[string]string{"y": "d: 4"}
	secret = testenv.Must(secrets.Update(t.Context(), secret, metav1.UpdateOptions{}))(t)
	h.awaitRevision("ordered", 1)
	configs := h.objects.Resource(kinds.Configs().Resource).Namespace(h.ns)
	testenv.Must(configs.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "helm.cattle.io/v1", "kind": "HelmChartConfig", "metadata": map[string]any{"name": "ordered"},
		"spec": map[string]any{"valuesContent": "e: 5", "values": map[string]any{"f": int64(6)}, "failurePolicy": "abort"},
	}}, metav1.CreateOptions{}))(t)
	h.awaitRevision("ordered", 2)
	all := h.requests()
	last := all[len(all)-1]
	if got, want := documents(last), `["a: 1","{\"b\":2}","c: 3","d: 4","e: 5","{\"f\":6}"]`; got != want || last.FailurePolicy != helmjob.Abort {
		t.Errorf("values %s, want %s; policy %s", got, want, last.FailurePolicy)
	}
	secret.Annotations = map[string]string{"example.com/nothing": "of value"}
	secret = testenv.Must(secrets.Update(t.Context(), secret, metav1.UpdateOptions{}))(t)
	secret.StringData = map[string]string{"y": "d: 44"}
	testenv.Must(secrets.Update(t.Context(), secret, metav1.UpdateOptions{}))(t)
	h.awaitRevision("ordered", 3)
	testenv.NoError(t, configs.Delete(t.Context(), "ordered", metav1.DeleteOptions{}))
	h.awaitRevision("ordered", 4)
	h.removed("ordered")
}

// failures: they are tried again for so long, or not at all, and mended by other values; the engine itself may break.
func (h *charts) failures(t *testing.T) {
	h.t = t
	defer h.instead(nil)
	h.instead(func(_ context.Context, q *helmjob.Request) (*helmjob.Result, error) {
		if strings.Contains(documents(*q), "good") {
			return h.helm(q)
		}
		return &helmjob.Result{Reason: helmjob.HookFailed, Message: "The hook says no.", TryAgain: true}, nil
	})
	h.create("broken", map[string]any{"chart": "broken.tgz", "backOffLimit": int64(2)})
	chart := h.await("broken", "HookFailed")
	eventually(t, "it is given up", func(context.Context) error {
		if chart = h.await("broken", "HookFailed"); !strings.Contains(fmt.Sprint(chart.Status.Conditions), "Given up after 3 tries. The hook says no.") {
			return fmt.Errorf("it says %+v", chart.Status)
		}
		return nil
	})
	h.awaitEvent("broken", "HookFailed", "The hook says no.")
	h.patch("broken", `{"spec":{"valuesContent":"good: true"}}`)
	h.awaitRevision("broken", 1)

	h.instead(func(context.Context, *helmjob.Request) (*helmjob.Result, error) {
		return nil, errors.New("it was killed")
	})
	h.patch("broken", `{"spec":{"valuesContent":"bad: true","backOffLimit":1000}}`) // it is not given up before the engine works again
	h.await("broken", "Failed")
	h.instead(nil)
	h.awaitRevision("broken", 2)
	h.removed("broken")

	h.create("nothing", map[string]any{"valuesContent": "a: 1"})
	h.await("nothing", "NoChart")
	h.create("local", map[string]any{"chart": "/etc"})
	h.await("local", "NoChart")
	h.create("garbled", map[string]any{"chartContent": "%%%"})
	h.await("garbled", "InvalidChart")
	h.create("nowhere", map[string]any{"chart": "oci://registry.example/x", "targetNamespace": "charts-nowhere"})
	h.await("nowhere", helmcharts.ReasonNamespaceMissing)
	h.namespace1("charts-nowhere")
	h.awaitRevision("nowhere", 1)
	for _, name := range []string{"nothing", "local", "garbled", "nowhere"} {
		h.removed(name)
	}
}

// strange: values that no controller can read and names that no release has are the chart's own trouble, and never
// another one's.
func (h *charts) strange(t *testing.T) {
	h.t = t
	long := strings.Repeat("long-", 14) + "name"
	for name, spec := range map[string]map[string]any{
		"number":   {"chart": "oci://registry.example/x", "set": map[string]any{"a": int64(1) << 40}},
		"duration": {"chart": "oci://registry.example/x", "timeout": "a while"},
		"negative": {"chart": "oci://registry.example/x", "timeout": "-5m"},
		"path":     {"chart": "oci://registry.example/x", "targetNamespace": "../nodes"},
		long:       {"chart": "oci://registry.example/x"},
	} {
		h.create(name, spec)
		h.await(name, "BadRequest")
		h.patch(name, `{"metadata":{"finalizers":["wrangler.cattle.io/on-helm-chart-remove"]}}`) // as it comes from k3s
	}
	h.create("plain", map[string]any{"chart": "plain.tgz"})
	h.awaitRevision("plain", 1)
	h.patch("duration", `{"spec":{"timeout":"1m"}}`)
	h.awaitRevision("duration", 1)
	h.patch("duration", `{"spec":{"timeout":"1 m"}}`)
	h.await("duration", "BadRequest")
	for _, name := range []string{"number", "duration", "negative", "path", long, "plain"} {
		h.removed(name)
	}
	if left := h.releases(h.ns, "duration"); len(left) > 0 {
		t.Errorf("a chart that could not be read any more has left its release: %v", left)
	}
}

// rivals: two charts with one release neither undo one another's work for ever, nor does the removal of the younger
// take the release along.
func (h *charts) rivals(t *testing.T) {
	h.t = t
	older, younger := h.ns, h.namespace1("charts-younger")
	defer func() { h.ns = older }()
	h.create("shared", map[string]any{"chart": "shared.tgz"})
	h.awaitRevision("shared", 1)
	made := h.await("shared", helmcharts.ReasonDeployed).CreationTimestamp
	eventually(t, "a second later", func(context.Context) error { // creation counts in seconds
		if metav1.Now().Unix() <= made.Unix() {
			return errors.New("it is not")
		}
		return nil
	})
	h.ns = younger
	h.create("shared", map[string]any{"chart": "other.tgz", "targetNamespace": older})
	h.await("shared", helmcharts.ReasonReleaseTaken)
	h.removed("shared")
	h.create("shared", map[string]any{"chart": "other.tgz", "targetNamespace": older})
	h.await("shared", helmcharts.ReasonReleaseTaken)
	h.ns = older
	testenv.Equal(t, h.await("shared", helmcharts.ReasonDeployed).Status.Revision, 1, "the older one's release is at revision")
	h.removed("shared")
	h.ns = younger
	h.await("shared", helmcharts.ReasonDeployed)
	h.removed("shared")
}

// deletion is never stuck: neither on an installation that is under way, nor on a removal that fails, nor on a
// namespace that is gone.
func (h *charts) deletion(t *testing.T) {
	h.t = t
	defer h.instead(nil)
	blocked := make(chan struct{})
	h.instead(func(ctx context.Context, q *helmjob.Request) (*helmjob.Result, error) {
		if q.Operation == helmjob.Uninstall {
			return h.helm(q)
		}
		close(blocked)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	h.create("hangs", map[string]any{"chart": "hangs.tgz"})
	<-blocked
	h.removed("hangs")

	h.instead(nil)
	h.create("stays", map[string]any{"chart": "stays.tgz"})
	h.awaitRevision("stays", 1)
	h.instead(func(context.Context, *helmjob.Request) (*helmjob.Result, error) {
		return &helmjob.Result{Reason: helmjob.UninstallFailed, Message: "It does not go.", TryAgain: true}, nil
	})
	h.removed("stays")
	h.awaitEvent("stays", helmcharts.ReasonLeftBehind, "It does not go.")
	h.instead(nil)

	h.namespace1("charts-goes")
	h.create("goes", map[string]any{"chart": "goes.tgz", "targetNamespace": "charts-goes"})
	h.awaitRevision("goes", 1)
	testenv.NoError(t, h.client.CoreV1().Namespaces().Delete(t.Context(), "charts-goes", metav1.DeleteOptions{}))
	eventually(t, "the namespace is gone", func(ctx context.Context) error {
		_, err := h.client.CoreV1().Namespaces().Get(ctx, "charts-goes", metav1.GetOptions{})
		return gone(err)
	})
	h.await("goes", helmcharts.ReasonNamespaceMissing)
	h.removed("goes")
	h.awaitEvent("goes", helmcharts.ReasonLeftBehind, "went with its namespace")
}

// unmanaged: an annotation leaves the release alone, also when its chart goes; one that comes from k3s can be deleted.
func (h *charts) unmanaged(t *testing.T) {
	h.t = t
	h.create("own", map[string]any{"chart": "own.tgz"})
	h.awaitRevision("own", 1)
	h.patch("own", `{"metadata":{"finalizers":["coracle.dev/helm-release","wrangler.cattle.io/on-helm-chart-remove"],"annotations":{"helmcharts.helm.cattle.io/unmanaged":"true"}}}`)
	eventually(t, "it is let go", func(ctx context.Context) error {
		u, err := h.api().Get(ctx, "own", metav1.GetOptions{})
		if err == nil && len(u.GetFinalizers()) > 0 {
			err = fmt.Errorf("it has %v", u.GetFinalizers())
		}
		return err
	})
	h.removed("own")
	testenv.Equal(t, len(h.releases(h.ns, "own")), 1, "the release of a chart that is not managed was removed:")
}

// nextTerm: a leader that finds everything as it is to be asks nothing of Helm, and takes up what its predecessor left.
func (h *charts) nextTerm(t *testing.T) {
	h.t = t
	h.instead(nil)
	end := h.begin()
	h.create("kept", map[string]any{"chart": "kept.tgz"})
	h.awaitRevision("kept", 1)
	begun := make(chan struct{})
	h.instead(func(ctx context.Context, _ *helmjob.Request) (*helmjob.Result, error) {
		close(begun)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	h.create("half", map[string]any{"chart": "half.tgz"})
	<-begun
	end() // also the child's end
	h.instead(nil)
	n := len(h.requests())
	end = h.begin()
	h.awaitRevision("half", 1)
	for _, q := range h.requests()[n:] {
		testenv.True(t, q.Release == "half", "Helm was asked for %s of %s again", q.Operation, q.Release)
	}
	end()
}

// withoutCharts: with the part disabled charts can be deleted, and the kinds go with the last of them.
func (h *charts) withoutCharts(t *testing.T) {
	h.t = t
	h.disabled = true
	end := h.begin()
	<-h.wanted
	eventually(t, "the charts are let go", func(ctx context.Context) error {
		list, err := h.api().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range list.Items {
			if f := list.Items[i].GetFinalizers(); len(f) > 0 {
				return fmt.Errorf("%s has %v", list.Items[i].GetName(), f)
			}
		}
		if len(list.Items) != 2 {
			return fmt.Errorf("there are %d", len(list.Items))
		}
		return nil
	})
	h.remove("kept")
	h.remove("half")
	end()
	end = h.begin()
	<-h.wanted
	eventually(t, "the kinds are gone", func(ctx context.Context) error {
		for _, k := range []interface {
			Defined(context.Context, dynamic.Interface) (bool, error)
		}{kinds.Charts(), kinds.Configs()} {
			if there, err := k.Defined(ctx, h.objects); err != nil || there {
				return fmt.Errorf("defined: %t, %w", there, err)
			}
		}
		return nil
	})
	end()
}
