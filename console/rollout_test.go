// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// rolloutAPI has a Deployment with two ReplicaSets of its own and one of another owner, and a DaemonSet with two
// revisions. Patches go to the channel; the first is in conflict.
func rolloutAPI(patches chan string) http.HandlerFunc {
	const deployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"a","uid":"d","resourceVersion":"7",` +
		`"annotations":{"deployment.kubernetes.io/revision":"2","note":"new","kubectl.kubernetes.io/last-applied-configuration":"x"}},` +
		`"spec":{"selector":{"matchLabels":{"app":"web"}},"template":{"spec":{"containers":[{"name":"c","image":"two"}]}}}}`
	const set = `{"metadata":{"name":"web-%[1]s","creationTimestamp":"2026-01-0%[1]sT00:00:00Z","annotations":{"deployment.kubernetes.io/revision":"%[1]s",` +
		`"kubernetes.io/change-cause":"cause %[1]s"},"ownerReferences":[{"uid":%[3]q,"controller":true}]},"spec":{"template":{"metadata":{"labels":` +
		`{"app":"web","pod-template-hash":"h"}},"spec":{"containers":[{"name":"c","image":%[2]q}]}}}}`
	const daemons = `{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"all","namespace":"a","uid":"s","resourceVersion":"8"},` +
		`"spec":{"selector":{"matchLabels":{"app":"all"}},"template":{"spec":{"containers":[{"name":"c","image":"two"}]}}}}`
	const history = `{"metadata":{"name":"all-%[1]d","ownerReferences":[{"uid":"s","controller":true}]},"revision":%[1]d,"data":{"spec":{"template":` +
		`{"$patch":"replace","spec":{"containers":[{"name":"c","image":"image%[1]d"}]}}}}}`
	tries := 0
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			text, _ := io.ReadAll(r.Body)
			patches <- r.URL.RawQuery + " " + r.Header.Get("Content-Type") + " " + string(text)
			if tries++; tries == 1 {
				w.WriteHeader(http.StatusConflict)
				_, _ = io.WriteString(w, `{"kind":"Status","code":409,"reason":"Conflict","message":"another client"}`)
				return
			}
			_, _ = io.WriteString(w, strings.Replace(deployment, `"image":"two"`, `"image":"one"`, 1))
			return
		}
		switch r.URL.Path {
		case "/apis/apps/v1/namespaces/a/deployments/web":
			_, _ = io.WriteString(w, deployment)
		case "/apis/apps/v1/namespaces/a/daemonsets/all":
			_, _ = io.WriteString(w, daemons)
		case "/apis/apps/v1/namespaces/a/deployments/paused":
			_, _ = io.WriteString(w, strings.Replace(deployment, `"spec":{`, `"spec":{"paused":true,`, 1))
		case "/apis/apps/v1/namespaces/a/replicasets":
			if r.URL.Query().Get("labelSelector") != "app=web" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			_, _ = fmt.Fprintf(w, `{"items":[%s,%s,%s]}`, fmt.Sprintf(set, "1", "one", "d"), fmt.Sprintf(set, "2", "two", "d"), fmt.Sprintf(set, "9", "nine", "other"))
		case "/apis/apps/v1/namespaces/a/controllerrevisions":
			_, _ = fmt.Fprintf(w, `{"items":[%s,%s]}`, fmt.Sprintf(history, 1), fmt.Sprintf(history, 2))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}
}

func TestRevisionsOfAWorkload(t *testing.T) {
	s := consoleOf(t, rolloutAPI(nil))
	for path, want := range map[string]string{
		"/apis/apps/v1/namespaces/a/deployments/web": `{"revisions":[{"number":2,"created":"2026-01-02T00:00:00Z","images":["two"],"cause":"cause 2"},` +
			`{"number":1,"created":"2026-01-01T00:00:00Z","images":["one"],"cause":"cause 1"}]}`,
		"/apis/apps/v1/namespaces/a/daemonsets/all": `{"revisions":[{"number":2,"created":null,"images":["image2"]},{"number":1,"created":null,"images":["image1"]}]}`,
	} {
		if code, text, _ := roundTrip(t, s, "GET", "/rollout?path="+path, "", "Authorization", bearer); code != http.StatusOK || text != want {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	for _, path := range []string{"/api/v1/namespaces/a/pods/web", "/apis/apps/v1/namespaces/a/replicasets/web", "/apis/apps/v1/namespaces/a/deployments", "/metrics"} {
		if code, text, _ := roundTrip(t, s, "GET", "/rollout?path="+path, "", "Authorization", bearer); code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
}

func TestRolloutIsUndone(t *testing.T) {
	patches := make(chan string, 8)
	s := consoleOf(t, rolloutAPI(patches))
	const body = `{"path":"/apis/apps/v1/namespaces/a/deployments/web","revision":1,"dryRun":true}`
	code, text, _ := roundTrip(t, s, "POST", "/rollout/undo", body, "Authorization", bearer)
	var out struct{ Diff string }
	if err := json.Unmarshal([]byte(text), &out); err != nil || code != http.StatusOK || !strings.Contains(out.Diff, "-      - image: two\n+      - image: one\n") {
		t.Errorf("a dry run: %d %s", code, text)
	}
	<-patches // the one in conflict
	want := `dryRun=All&fieldManager=coracle-console application/json-patch+json ` +
		`[{"op":"replace","path":"/spec/template","value":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"image":"one","name":"c"}]}}},` +
		`{"op":"add","path":"/metadata/annotations","value":{"deployment.kubernetes.io/revision":"2","kubectl.kubernetes.io/last-applied-configuration":"x","kubernetes.io/change-cause":"cause 1"}},` +
		`{"op":"replace","path":"/metadata/resourceVersion","value":"7"}]`
	if got := <-patches; got != want {
		t.Errorf("the patch of a Deployment is\n%s, want\n%s", got, want)
	}
	roundTrip(t, s, "POST", "/rollout/undo", `{"path":"/apis/apps/v1/namespaces/a/daemonsets/all","revision":1}`, "Authorization", bearer)
	want = `fieldManager=coracle-console application/strategic-merge-patch+json {"metadata":{"resourceVersion":"8"},` +
		`"spec":{"template":{"$patch":"replace","spec":{"containers":[{"image":"image1","name":"c"}]}}}}`
	if got := <-patches; got != want {
		t.Errorf("the patch of a DaemonSet is\n%s, want\n%s", got, want)
	}
	for body, want := range map[string]string{
		strings.Replace(body, `"revision":1`, `"revision":9`, 1): "no revision 9", strings.Replace(body, "/web", "/paused", 1): "resume it",
	} {
		if code, text, _ := roundTrip(t, s, "POST", "/rollout/undo", body, "Authorization", bearer); code != http.StatusBadRequest || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", body, code, text)
		}
	}
	if len(patches) > 0 {
		t.Errorf("the API got %s", <-patches)
	}
	s = consoleOf(t, rolloutAPI(patches), func(o *Options) { o.ReadOnly = true })
	if code, text, _ := roundTrip(t, s, "POST", "/rollout/undo", strings.Replace(body, "true", "false", 1), "Authorization", bearer); code != http.StatusForbidden {
		t.Errorf("read-only: %d %s", code, text)
	}
}
