// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/charts"
	"github.com/coracle-k8s/coracle/test/testapi"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// shared is the one API server of these tests.
var shared struct {
	socket string
	config *rest.Config
	client kubernetes.Interface
}

// TestMain also makes this binary the child process, as coracle is one.
func TestMain(m *testing.M) {
	if os.Args[0] == helmjob.Name {
		os.Exit(Main())
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "helmjob-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		config, _, stop, err := testapi.Start(dir)
		if err == nil {
			defer func() { _ = stop() }()
			shared.socket, shared.config = filepath.Join(dir, "api"), config
			err = serveSocket(config, shared.socket)
		}
		if err == nil {
			shared.client, err = kubernetes.NewForConfig(config)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "start the API server:", err)
			return 1
		}
		return m.Run()
	}())
}

// serveSocket passes what comes by a Unix socket on to the API server, as the server does for its children, until this
// process ends.
func serveSocket(config *rest.Config, path string) error {
	transport, err := rest.TransportFor(config)
	if err != nil {
		return err
	}
	to, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		_ = http.Serve(l, &httputil.ReverseProxy{Transport: transport, FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }})
	}()
	return nil
}

var testSeal = []byte("a secret of the cluster")

// hook is a Job that never ends, since nothing runs it.
const hook = `apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-hook
  annotations:
    helm.sh/hook: %s
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: example.invalid/none}]
`

// web is a chart with a ConfigMap that says what value it was given.
func web(version string) charts.Chart {
	return charts.New("web", version, "").
		With("values.yaml", "greeting: hello\n").
		With("templates/main.yaml", configMap("{{ .Release.Name }}", "{{ .Values.greeting | quote }}"))
}

func configMap(name, greeting string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\ndata:\n  greeting: %s\n", name, greeting)
}

// tester is one test's release in a namespace of its own.
type tester struct {
	*testing.T
	ns  string
	log *strings.Builder
	// driver is where the release is kept; "" is in Secrets.
	driver string
}

func newTester(t *testing.T) *tester {
	t.Helper()
	ns := testenv.Must(shared.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "helm-"}}, metav1.CreateOptions{}))(t)
	tt := &tester{T: t, ns: ns.Name, log: &strings.Builder{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tt.log)
		}
	})
	return tt
}

// request asks for a chart.
func (t *tester) request(c charts.Chart) *helmjob.Request {
	return &helmjob.Request{
		Operation: helmjob.Apply, Seal: testSeal, Socket: shared.socket, Namespace: t.ns, Release: "web",
		Chart: helmjob.Chart{Content: c.Archive()}, Timeout: time.Minute, Driver: t.driver,
	}
}

func (t *tester) removal() *helmjob.Request {
	return &helmjob.Request{
		Operation: helmjob.Uninstall, Seal: testSeal, Socket: shared.socket, Namespace: t.ns, Release: "web", Timeout: time.Minute, Driver: t.driver,
	}
}

// do has a request done that must end so. Each message is shown: reading them is part of the test.
func (t *tester) do(req *helmjob.Request, action helmjob.Action, reason helmjob.Reason) *helmjob.Result {
	t.Helper()
	r := Do(t.Context(), Options{Logger: slog.New(slog.NewTextHandler(t.log, nil))}, req)
	t.Log(r.Message)
	if r.Action != action || r.Reason != reason {
		t.Fatalf("it did %q and failed with %q, want %q and %q: %s", r.Action, r.Reason, action, reason, r.Message)
	}
	return r
}

// says looks into a message.
func (t *tester) says(r *helmjob.Result, words ...string) {
	t.Helper()
	for _, w := range words {
		testenv.Contains(t, r.Message, w, "the message does not say %q:", w)
	}
}

// greeting is what the ConfigMap says; "" where there is none.
func (t *tester) greeting(name string) string {
	t.Helper()
	m, err := shared.client.CoreV1().ConfigMaps(t.ns).Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return ""
	}
	testenv.NoError(t, err)
	return m.Data["greeting"]
}

func (t *tester) wantGreeting(name, want string) {
	t.Helper()
	if got := t.greeting(name); got != want {
		t.Fatalf("the ConfigMap %s says %q, want %q", name, got, want)
	}
}

// leave makes the newest revision look as a child that was killed leaves it.
func (t *tester) leave(status common.Status) {
	t.Helper()
	t.rewrite(func(r *release.Release) { r.SetStatus(status, "as a dead child left it") })
}

// rewrite changes the newest revision's record and nothing else: its seal stays as it is.
func (t *tester) rewrite(change func(*release.Release)) {
	t.Helper()
	c := testenv.Must(openCluster(shared.socket, t.ns, slog.Default()))(t)
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	testenv.NoError(t, cfg.Init(c, t.ns, cmp.Or(t.driver, "secret")))
	history, err := (&job{req: t.removal(), cfg: cfg}).history()
	testenv.Require(t, err == nil && len(history) != 0, "no release: %v", err)
	last := lastOf(history)
	change(last)
	testenv.NoError(t, cfg.Releases.Update(last))
}

// waitForRelease waits until the newest revision has a status.
func (t *tester) waitForRelease(status common.Status) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, "a release that is "+status.String(), func() error {
		list, err := shared.client.CoreV1().Secrets(t.ns).List(context.Background(), metav1.ListOptions{LabelSelector: "owner=helm,name=web,status=" + status.String()})
		if err == nil && len(list.Items) == 0 {
			err = fmt.Errorf("there is none")
		}
		return err
	})
}
