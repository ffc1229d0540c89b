// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// inMemory answers requests without a network, so that time can be that of a test.
type inMemory http.HandlerFunc

func (f inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	f(w, r)
	return w.Result(), nil
}

// drainAPI is an API with a node and pods on it.
type drainAPI struct {
	cordoned bool
	pods     map[string]string // name → what is special of it, as JSON
	refusals map[string]int    // how often the eviction of a pod is refused
	slow     map[string]int    // in how many lists a pod is after its eviction
	evicted  []string
}

const owned = `"ownerReferences":[{"apiVersion":"apps/v1","kind":"%s","name":"x","controller":true}]`

func (a *drainAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, eviction := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/a/pods/"), "/eviction")
	switch {
	case r.URL.Path == "/api/v1/nodes/n" && r.Method == http.MethodPatch:
		a.cordoned = true
		_, _ = io.WriteString(w, `{}`)
	case r.URL.Path == "/api/v1/nodes/n":
		_, _ = fmt.Fprintf(w, `{"spec":{"unschedulable":%t}}`, a.cordoned)
	case r.URL.Path == "/api/v1/pods" && r.URL.Query().Get("fieldSelector") == "spec.nodeName=n":
		var out []string
		for name, special := range a.pods {
			if slices.Contains(a.evicted, name) {
				if a.slow[name]--; a.slow[name] < 0 {
					delete(a.pods, name)
					continue
				}
			}
			meta, rest, _ := strings.Cut(special, "|")
			out = append(out, fmt.Sprintf(`{"metadata":{"namespace":"a","name":%q,"uid":%q,%s}%s}`, name, "uid-"+name, meta, rest))
		}
		_, _ = io.WriteString(w, `{"items":[`+strings.Join(out, ",")+`]}`)
	case r.URL.Path == "/apis/apps/v1/namespaces/a/daemonsets/x":
		_, _ = io.WriteString(w, `{"metadata":{"name":"x"}}`)
	case eviction:
		body, _ := io.ReadAll(r.Body)
		if !strings.Contains(string(body), `"preconditions":{"uid":"uid-`+name+`"}`) {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if a.refusals[name]--; a.refusals[name] >= 0 {
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"kind":"Status","code":429,"reason":"TooManyRequests","message":"Cannot evict.","details":{"causes":`+
				`[{"reason":"DisruptionBudget","message":"The disruption budget b needs 1 healthy pods and has 1 currently"}]}}`)
			return
		}
		a.evicted = append(a.evicted, name)
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"kind":"Status","status":"Success"}`)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// run drains node n with options, and returns what was reported, by pod.
func (a *drainAPI) run(ctx context.Context, t *testing.T, query url.Values) (map[string][]string, error) {
	t.Helper()
	o := testenv.Must(newDrainOptions(query))(t)
	if a.refusals == nil {
		a.refusals = map[string]int{}
	}
	if a.slow == nil {
		a.slow = map[string]int{}
	}
	out := map[string][]string{}
	config := &rest.Config{Host: "http://api", Transport: inMemory(a.ServeHTTP)}
	d := &drain{u: &user{config: config}, path: "/api/v1/nodes/n", node: "n", o: o, report: func(pod, state, text string) error {
		out[pod] = append(out[pod], strings.TrimSpace(state+" "+text))
		return nil
	}}
	return out, d.run(ctx)
}

var (
	replicated = fmt.Sprintf(owned, "ReplicaSet")
	daemon     = fmt.Sprintf(owned, "DaemonSet")
)

func TestDrainEvictsAndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &drainAPI{
			pods: map[string]string{
				"web": replicated, "guarded": replicated, "daemon": daemon, "static": `"annotations":{"kubernetes.io/config.mirror":"x"}`,
				"ended": `"labels":{}|,"status":{"phase":"Succeeded"}`,
			},
			refusals: map[string]int{"guarded": 3}, slow: map[string]int{"web": 4},
		}
		started := time.Now()
		got := testenv.Must(a.run(t.Context(), t, url.Values{"ignoreDaemonSets": {"true"}}))(t)
		const budget = "refused Cannot evict. The disruption budget b needs 1 healthy pods and has 1 currently"
		for pod, want := range map[string]string{
			"": "cordoned", "a/web": "evicted, gone", "a/guarded": budget + ", evicted, gone", "a/daemon": "ignored a DaemonSet has it", "a/ended": "evicted, gone",
		} {
			testenv.Equal(t, strings.Join(got[pod], ", "), want, "%q:", pod)
		}
		testenv.False(t, len(got) != 5 || !a.cordoned, "cordoned %t; reported: %v", a.cordoned, got)
		if took := time.Since(started); took != 16*time.Second { // three refusals, and a round until the pod has gone
			t.Errorf("it took %s", took)
		}
	})
}

func TestDrainRefusesWhatIsNotAccepted(t *testing.T) {
	const emptyDir = `|,"spec":{"volumes":[{"emptyDir":{}}]}`
	for name, c := range map[string]struct {
		special string
		option  string // with which it is not refused
		message string
	}{
		"of a DaemonSet":         {daemon, "ignoreDaemonSets", "--ignore-daemonsets leaves them): a/p"},
		"with data":              {replicated + emptyDir, "deleteEmptyDirData", "--delete-emptydir-data accepts that): a/p"},
		"without a controller":   {`"labels":{}`, "force", "--force evicts them): a/p"},
		"of a DaemonSet that is": {strings.Replace(daemon, `"x"`, `"gone"`, 1), "force", "--force evicts them): a/p"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &drainAPI{pods: map[string]string{"p": c.special, "q": replicated}}
				got, err := a.run(t.Context(), t, url.Values{})
				if err == nil || !strings.Contains(err.Error(), c.message) || a.cordoned || len(a.evicted) > 0 || len(got) > 0 {
					t.Errorf("%v; cordoned %t, evicted %v, reported %v", err, a.cordoned, a.evicted, got)
				}
				if _, err := a.run(t.Context(), t, url.Values{c.option: {"true"}}); err != nil || !a.cordoned {
					t.Errorf("with %s: %v", c.option, err)
				}
			})
		})
	}
}

func TestDrainEndsAtItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &drainAPI{pods: map[string]string{"guarded": replicated}, refusals: map[string]int{"guarded": 1 << 30}}
		started := time.Now()
		_, err := a.run(t.Context(), t, url.Values{"timeout": {"2m"}})
		if err == nil || !strings.Contains(err.Error(), "after 2m0s") || time.Since(started) != 2*time.Minute {
			t.Errorf("after %s: %v", time.Since(started), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Hour, cancel) // the user closes the dialog
		testenv.ErrorIs(t, testenv.Err(a.run(ctx, t, url.Values{})), context.Canceled, "a drain that was ended")
	})
}

func TestDrainOptionsAreChecked(t *testing.T) {
	for text, good := range map[string]bool{"": true, "0": true, "30": true, "-1": false, "x": false, "3000000000": false} {
		if _, err := newDrainOptions(url.Values{"gracePeriod": {text}}); (err == nil) != good {
			t.Errorf("grace period %q: %v", text, err)
		}
	}
	for text, good := range map[string]bool{"": true, "5m": true, "-5m": false, "5": false} {
		if _, err := newDrainOptions(url.Values{"timeout": {text}}); (err == nil) != good {
			t.Errorf("timeout %q: %v", text, err)
		}
	}
}

// An attacker who has a read-only console's tab asks for a drain or a shell; the API must not get the request.
func TestReadOnlyRefusesStreams(t *testing.T) {
	s := consoleOf(t, noAPI(t), func(o *Options) { o.ReadOnly = true })
	conn, _ := tab(t, s, "good", nil)
	for i, op := range []string{"drain", "exec", "attach"} {
		path := "/api/v1/namespaces/a/pods/b/" + op
		if op == "drain" {
			path = "/api/v1/nodes/n"
		}
		testenv.NoError(t, conn.WriteJSON(pageMessage{ID: int64(i + 1), Op: op, Path: path}))
		testenv.Equal(t, next(t, conn, "end")["code"], 403.0, "%s:", op)
	}
}
