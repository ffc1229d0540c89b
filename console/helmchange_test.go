// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMain is the child process for Helm, too: it is called as coracle would be.
func TestMain(m *testing.M) {
	if os.Args[0] == helmjob.Name {
		os.Exit(beHelm())
	}
	os.Exit(m.Run())
}

// beHelm asks the API for /version with a header of its own, and says what it was asked for and what it has of secrets.
func beHelm() int {
	line, err := bufio.NewReader(os.Stdin).ReadBytes('\n')
	q := &helmjob.Request{}
	if err == nil {
		err = json.Unmarshal(line, q)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", q.Socket)
	}}}
	r := &helmjob.Result{Action: helmjob.RolledBack}
	var request *http.Request
	if err == nil {
		request, err = http.NewRequest(http.MethodGet, "http://api/helm-"+string(q.Operation), nil)
	}
	var response *http.Response
	if err == nil {
		request.Header.Set("Authorization", "Bearer another")
		request.Header.Set("Impersonate-User", "root")
		response, err = client.Do(request)
	}
	if err == nil {
		response.Body.Close()
		r.Message = fmt.Sprintf("%s %v %v", q.Operation, os.Args[1:], strings.Contains(string(line)+strings.Join(os.Environ(), " "), "users-token"))
	} else {
		r.Reason, r.Message = helmjob.Failed, err.Error()
	}
	if q.Release == "hangs" {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the console ends
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
	return 0
}

// helmCluster is an API with releases that can be changed, and what children asked it.
type helmCluster struct {
	mu     sync.Mutex
	asked  []string      // path, token and impersonated user of each request of a child
	began  chan struct{} // has a value for each of these; capacity: more than a test has
	charts string        // the HelmCharts of all namespaces; "" when the user may not see them
	own    string        // the HelmCharts of namespace a
	labels string        // more labels of the newest revision
	status string        // of the newest revision
	since  time.Time     // when the newest revision was deployed
}

const changeManifest = `# comment
---
kind: ConfigMap
metadata: {name: one}
data: {a: %[1]d}
---
kind: ConfigMap
metadata: {name: only-%[1]d}
---
kind: List
items:
- {kind: Role, metadata: {name: hidden, namespace: kube-system}}
---
kind: PersistentVolumeClaim
metadata: {name: data, annotations: {helm.sh/resource-policy: keep}}
`

func (c *helmCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, "/helm-"):
		c.mu.Lock()
		c.asked = append(c.asked, path+" "+r.Header.Get("Authorization")+" "+r.Header.Get("Impersonate-User"))
		c.mu.Unlock()
		c.began <- struct{}{}
	case strings.HasSuffix(path, "/helmcharts"):
		items := c.charts
		if strings.Contains(path, "/namespaces/a/") {
			items = c.own
		}
		if items == "" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, `{"items":[`+items+`]}`)
	case strings.HasSuffix(path, "/secrets"):
		name := strings.TrimPrefix(r.URL.Query().Get("labelSelector"), "owner=helm,name=")
		item := `{"metadata":{"name":"v%d","namespace":"a","labels":{"owner":"helm","name":%q,"version":"%d","status":%q%s}}}`
		_, _ = fmt.Fprintf(w, `{"items":[`+item+`,`+item+`]}`, 1, name, 1, "superseded", "", 2, name, 2, c.status, c.labels)
	default: // a revision
		n := 1 + strings.Count(path, "v2")
		record := map[string]any{
			"info":     map[string]any{"last_deployed": c.since.Format(time.RFC3339Nano)},
			"chart":    map[string]any{"values": map[string]any{"a": map[string]any{"x": 1, "z": 2}, "gone": 1, "nothing": nil}},
			"config":   map[string]any{"a": map[string]any{"x": n}, "gone": nil},
			"manifest": fmt.Sprintf(changeManifest, n),
			"hooks": []map[string]any{
				{"name": "before", "kind": "Job", "events": []string{"pre-delete", "pre-rollback"}, "manifest": "kind: Job\nmetadata: {name: before}"},
				{"name": "other", "kind": "Job", "events": []string{"pre-install"}},
			},
		}
		text, _ := json.Marshal(record)
		_, _ = io.WriteString(w, `{"data":{"release":"`+base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString(text)))+`"}}`)
	}
}

func newHelmCluster() *helmCluster {
	return &helmCluster{began: make(chan struct{}, 8), charts: " ", status: "deployed"}
}

// consoleWithHelm is a console whose children are this program. The user's token is users-token.
func consoleWithHelm(t *testing.T, c *helmCluster, change ...func(*Options)) (ask func(method, path, body string) (int, string)) {
	t.Helper()
	program := testenv.Must(os.Executable())(t)
	s := consoleOf(t, c.ServeHTTP, append([]func(*Options){func(o *Options) {
		o.Program = program
		user := o.User
		o.User = func(token string) (*rest.Config, bool) {
			config, known := user(token)
			config.BearerToken = "users-token"
			return config, known
		}
	}}, change...)...)
	return func(method, path, body string) (int, string) {
		code, text, _ := roundTrip(t, s, method, path, body, asUser...)
		return code, text
	}
}

const (
	goBack  = `{"namespace":"a","name":"web","shown":[{"revision":2,"sum":"x"},{"revision":1,"sum":"y"}]}`
	takeOff = `{"namespace":"a","name":"web","shown":[{"revision":2,"sum":"x"}]}`
)

// The preview names what Helm would do, and what a List hides.
func TestChangeOfReleaseIsShownBefore(t *testing.T) {
	ask := consoleWithHelm(t, newHelmCluster())
	code, text := ask("GET", "/helm/change?namespace=a&name=web&from=2&to=1", "")
	var got previewResponse
	testenv.Require(t, json.Unmarshal([]byte(text), &got) == nil && code == http.StatusOK, "%d %s", code, text)
	testenv.Contains(t, got.Values, "-  x: 2\n+  x: 1", "values")
	testenv.Contains(t, got.Computed, "-  x: 2\n+  x: 1\n   z: 2", "computed values")
	testenv.False(t, strings.Contains(got.Computed, "gone") || strings.Contains(got.Computed, "nothing"), "%s", got.Computed)
	testenv.Contains(t, got.Manifest, "-data: {a: 2}\n+data: {a: 1}", "manifest")
	testenv.Require(t, len(got.Shown) == 2 && got.Shown[0].Revision == 2 && got.Shown[1].Revision == 1, "%+v", got.Shown)
	testenv.False(t, got.Shown[0].Sum == got.Shown[1].Sum, "two revisions have one sum")
	testenv.Require(t, len(got.Hooks) == 1 && got.Hooks[0].Name == "before" && strings.HasPrefix(got.Hooks[0].Manifest, "kind: Job\n"), "%+v", got.Hooks)

	testenv.Equal(t, fmt.Sprint(got.Removed), "[{ConfigMap  only-2 false [] }]", "objects that a rollback removes")

	_, text = ask("GET", "/helm/change?namespace=a&name=web&from=2", "")
	got = previewResponse{}
	testenv.NoError(t, json.Unmarshal([]byte(text), &got))
	testenv.Equal(t, fmt.Sprint(got.Objects), "[{ConfigMap  one false [] } {ConfigMap  only-2 false [] } {Role kube-system hidden false [] } {PersistentVolumeClaim  data true [] }]", "objects")
	testenv.False(t, len(got.Hooks) != 1 || got.Refusal != "" || len(got.Shown) != 1, "%s", text)
	if code, text = ask("GET", "/helm/change?namespace=a&name=web&from=2&to=7", ""); code != http.StatusBadRequest {
		t.Errorf("%d %s", code, text)
	}
}

// What a manifest's author hides from a reader is named all the same: keys that only Go's JSON takes for others, a hook
// whose record names another object than its manifest, and a policy that Helm reads of a List alone.
func TestForgedReleaseHidesNothing(t *testing.T) {
	objects := testenv.Must(helmObjects("kind: Namespace\n\u212aind: ConfigMap\nmetadata: {name: prod, nameſpace: a}\n---\n" +
		"kind: Secret\nmetadata: {name: s, namespace: kube-system, nameſpace: a}\n---\n" +
		"kind: List\nitemſ: []\nitems:\n- {kind: Role, metadata: {name: r, annotations: {helm.sh/resource-policy: keep}}}\n---\n" +
		"kind: List\nmetadata: {annotations: {helm.sh/resource-policy: ' Keep'}}\nitems:\n- {kind: Role, metadata: {name: k}}\n"))(t)
	testenv.Equal(t, fmt.Sprint(objects),
		"[{Namespace  prod false [] } {Secret kube-system s false [] } {Role  r false [] } {Role  k true [] }]", "objects")

	record := &storedRelease{Record: helmjob.Record{Hooks: []helmjob.Hook{{
		Name: "harmless", Kind: "Job", Events: []string{"pre-delete"},
		Manifest: "kind: ConfigMap\nmetadata: {name: one}\n---\nkind: ClusterRoleBinding\nmetadata: {name: two}\n",
	}}}}
	out := &previewResponse{}
	testenv.NoError(t, out.describe(record, "pre-delete"))
	testenv.Require(t, len(out.Hooks) == 2, "%+v", out.Hooks)
	testenv.Equal(t, out.Hooks[0].Kind+out.Hooks[0].Name+out.Hooks[1].Kind+out.Hooks[1].Name, "ConfigMaponeClusterRoleBindingtwo", "hooks")
}

// The child has the user's credentials only, and cannot take others. No token is in its arguments, environment or
// request.
func TestChildActsAsTheUser(t *testing.T) {
	c := newHelmCluster()
	ask := consoleWithHelm(t, c)
	for body, want := range map[string]string{goBack: "rollback", takeOff: "remove"} {
		code, text := ask("POST", "/helm/change", body)
		testenv.Equal(t, fmt.Sprint(code, " ", text), `200 {"message":"`+want+` [] false"}`, "the child")
	}
	for _, asked := range c.asked {
		testenv.True(t, strings.HasSuffix(asked, " Bearer users-token "), "the API was asked %q", asked)
	}
	testenv.Equal(t, len(c.asked), 2, "requests of children")
}

// A release that a HelmChart makes is left to it, also when the user may not see the HelmChart. A release on which
// another helm works is left to that one.
func TestReleaseOfOthersIsNotChanged(t *testing.T) {
	chart := func(ns, target, more string) string {
		return fmt.Sprintf(`{"metadata":{"name":"web","namespace":%q%s},"spec":{"targetNamespace":%q}}`, ns, more, target)
	}
	made := `,"coracle.dev/helm-request":"abc.2"`
	for name, x := range map[string]struct {
		c    *helmCluster
		want string // "" when the release is changed
		only bool   // only the preview refuses: the child would
	}{
		"a chart of another namespace": {c: &helmCluster{charts: chart("kube-system", "a", "")}, want: "HelmChart kube-system/web"},
		"a chart of this namespace":    {c: &helmCluster{own: chart("a", "", "")}, want: "HelmChart a/web"},
		"a hidden chart":               {c: &helmCluster{own: " ", labels: made}, want: "HelmChart that you may not see"},
		"a hidden chart's, changed":    {c: &helmCluster{own: " ", labels: `,"coracle.dev/helm-request":"abc.1"`}},
		"no chart any more":            {c: &helmCluster{charts: " ", labels: made}},
		"a chart for another place":    {c: &helmCluster{charts: chart("a", "b", "")}},
		"an unmanaged chart":           {c: &helmCluster{charts: chart("a", "", `,"annotations":{"helmcharts.helm.cattle.io/unmanaged":""}`)}},
		"another helm":                 {c: &helmCluster{charts: " ", status: "pending-upgrade", since: time.Now()}, want: "another helm", only: true},
		"a dead helm":                  {c: &helmCluster{charts: " ", status: "pending-upgrade", since: time.Now().Add(-helmjob.UserLimit)}},
	} {
		t.Run(name, func(t *testing.T) {
			x.c.began = make(chan struct{}, 1)
			ask := consoleWithHelm(t, x.c)
			var got previewResponse
			_, text := ask("GET", "/helm/change?namespace=a&name=web&from=2", "")
			testenv.NoError(t, json.Unmarshal([]byte(text), &got), text)
			testenv.Require(t, (got.Refusal == "") == (x.want == "") && strings.Contains(got.Refusal, x.want), "%s", text)
			code, text := ask("POST", "/helm/change", takeOff)
			if changed := code == http.StatusOK; changed != (x.want == "" || x.only) {
				t.Errorf("%d %s", code, text)
			}
		})
	}
}

// A console that only shows, or that has no Helm, starts no child.
func TestReleaseIsNotChangedWithoutHelm(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"--read-only": func(o *Options) { o.ReadOnly = true }, "has no Helm": func(o *Options) { o.Program = "" },
	} {
		c := newHelmCluster()
		ask := consoleWithHelm(t, c, change)
		if code, text := ask("POST", "/helm/change", goBack); code == http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%d %s", code, text)
		}
		if code, text := ask("POST", "/helm/change", strings.Replace(goBack, `"a"`, `"../x"`, 1)); code == http.StatusOK {
			t.Errorf("%d %s", code, text)
		}
		testenv.Equal(t, len(c.asked), 0, "requests of children")
	}
}

// TestChildOutlivesItsPage: a change goes on when the page is closed, it keeps the console from ending for want of use,
// and it ends with the console.
func TestChildOutlivesItsPage(t *testing.T) {
	c := newHelmCluster()
	program := testenv.Must(os.Executable())(t)
	var h *Handler
	s := consoleOf(t, c.ServeHTTP, func(o *Options) { o.Program = program })
	h = s.Config.Handler.(*Handler)
	ctx, closePage := context.WithCancel(t.Context())
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		r, _ := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/helm/change", strings.NewReader(strings.Replace(goBack, "web", "hangs", 1)))
		r.Header.Set(asUser[0], asUser[1])
		if response, err := http.DefaultClient.Do(r); err == nil {
			response.Body.Close()
		}
	}()
	<-c.began
	closePage()
	<-answered
	testenv.Equal(t, h.changing.Load(), 1, "children")
	h.used.Store(0)
	testenv.Equal(t, h.Unused(), 0, "the time without use")
	h.Close() // waits for the child
	testenv.Equal(t, h.changing.Load(), 0, "children")
}
