// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// applyAPI is an API with namespaces, config maps, pods, definitions of kinds and gears. A namespace gets its service
// account, and a kind is served, at the second question for it.
type applyAPI struct {
	t  *testing.T
	mu sync.Mutex
	// objects are by path. asked counts the questions for what takes its time.
	objects map[string]anyObject
	asked   map[string]int
	wrote   []string // the paths of what was written, without dry runs
	down    bool
}

func (a *applyAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		panic(http.ErrAbortHandler)
	}
	const gear, crds = "/apis/example.com", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	_, defined := a.objects[crds+"/gears.example.com"]
	served := defined && a.asked["kind"] > 1
	path := r.URL.Path
	refuse := func(code int, reason, message string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "code": code, "reason": reason, "message": message})
	}
	switch path {
	case "/api":
		_, _ = io.WriteString(w, `{"kind":"APIVersions","versions":["v1"]}`)
		return
	case "/apis":
		groups := `{"name":"apiextensions.k8s.io","versions":[{"groupVersion":"apiextensions.k8s.io/v1","version":"v1"}]}`
		if served {
			groups += `,{"name":"example.com","versions":[{"groupVersion":"example.com/v1","version":"v1"}]}`
		}
		_, _ = io.WriteString(w, `{"kind":"APIGroupList","apiVersion":"v1","groups":[`+groups+`]}`)
		return
	case "/api/v1":
		_, _ = io.WriteString(w, `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"namespaces","kind":"Namespace"},{"name":"configmaps","kind":"ConfigMap","namespaced":true},`+
			`{"name":"pods","kind":"Pod","namespaced":true},{"name":"serviceaccounts","kind":"ServiceAccount","namespaced":true}]}`)
		return
	case "/apis/apiextensions.k8s.io/v1":
		_, _ = io.WriteString(w, `{"kind":"APIResourceList","groupVersion":"apiextensions.k8s.io/v1","resources":[{"name":"customresourcedefinitions","kind":"CustomResourceDefinition"}]}`)
		return
	case gear + "/v1":
		_, _ = io.WriteString(w, `{"kind":"APIResourceList","groupVersion":"example.com/v1","resources":[{"name":"gears","kind":"Gear","namespaced":true}]}`)
		return
	}
	if r.Method == http.MethodGet {
		if o, there := a.objects[path]; there {
			if strings.HasPrefix(path, crds) {
				a.asked["kind"]++
				o = anyObject{"metadata": o["metadata"], "status": map[string]any{"conditions": []any{map[string]any{"type": "Established", "status": map[bool]string{true: "True", false: "False"}[a.asked["kind"] > 1]}}}}
			}
			_ = json.NewEncoder(w).Encode(o)
			return
		}
		refuse(404, "NotFound", "it is not there")
		return
	}
	var o anyObject
	testenv.NoError(a.t, json.NewDecoder(r.Body).Decode(&o))
	parts := strings.Split(path, "/")
	if i := slices.Index(parts, "namespaces"); i >= 0 && i+2 < len(parts) {
		if _, there := a.objects["/api/v1/namespaces/"+parts[i+1]]; !there && parts[i+1] != "default" {
			refuse(404, "NotFound", fmt.Sprintf("namespaces %q not found", parts[i+1]))
			return
		}
		if parts[i+2] == "pods" {
			spec, _ := o["spec"].(map[string]any)
			account, _ := spec["serviceAccountName"].(string)
			key := "/api/v1/namespaces/" + parts[i+1] + "/serviceaccounts/" + account
			a.asked[parts[i+1]]++
			if _, there := a.objects[key]; account != "" && !there || account == "" && a.asked[parts[i+1]] < 2 {
				refuse(403, "Forbidden", fmt.Sprintf("pods %q is forbidden: error looking up service account %s/%s: serviceaccount %q not found", parts[len(parts)-1], parts[i+1], account, orDefault(account)))
				return
			}
		}
	}
	if data, _ := o["data"].(map[string]any); data["bad"] != nil {
		refuse(500, "", `failed to create typed patch object (default/x; /v1, Kind=ConfigMap): .data.bad: expected string, got &value.valueUnstructured{Value:1}`)
		return
	}
	version := "1"
	if old, there := a.objects[path]; there {
		version = old.resourceVersion()
	}
	o.metadata()["resourceVersion"] = version
	if r.URL.Query().Get("dryRun") == "" {
		a.objects[path] = o
		a.wrote = append(a.wrote, strings.TrimPrefix(path, "/api/v1"))
	}
	_ = json.NewEncoder(w).Encode(o)
}

func orDefault(account string) string {
	if account == "" {
		return "default"
	}
	return account
}

// applyText applies a text by a console of an API, and returns the results in short.
func applyText(t *testing.T, api http.Handler, text string, dryRun bool) string {
	t.Helper()
	s := consoleOf(t, api.ServeHTTP, func(o *Options) { o.applyTimeout = 2 * time.Second })
	body := testenv.Must(json.Marshal(applyRequest{YAML: text, Namespace: "default", DryRun: dryRun}))(t)
	code, answer, _ := roundTrip(t, s, "POST", "/apply", string(body), asUser...)
	testenv.Equal(t, code, 200, "%s", answer)
	var out struct{ Results []applyResult }
	testenv.NoError(t, json.Unmarshal([]byte(answer), &out))
	var lines []string
	for _, r := range out.Results {
		line := fmt.Sprintf("%d %s %s", r.Document, r.Kind, r.Name)
		for _, part := range []string{r.Action, r.Needs} {
			if part != "" {
				line += "; " + part
			}
		}
		for _, p := range r.Problems {
			line += fmt.Sprintf("; line %d: %s", p.Line, p.Text)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

const wholeText = `apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop}
spec: {containers: [{name: a, image: b}]}
---
apiVersion: v1
kind: Pod
metadata: {name: q}
spec:
  serviceAccountName: runner
---
apiVersion: example.com/v1
kind: Gear
metadata: {name: g, namespace: shop}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gears.example.com}
spec: {group: example.com, names: {kind: Gear, plural: gears}, scope: Namespaced, versions: [{name: v1, served: true, storage: true}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: runner}
`

// TestDocumentsThatNeedEarlierOnes: a dry run says what it cannot check, and the same text is then applied.
func TestDocumentsThatNeedEarlierOnes(t *testing.T) {
	api := &applyAPI{t: t, objects: map[string]anyObject{}, asked: map[string]int{}}
	testenv.Equal(t, applyText(t, api, wholeText, true), strings.Join([]string{
		"1 Namespace shop; created", "2 ConfigMap c; document 1 makes its namespace", "3 Pod p; document 1 makes its namespace",
		"4 Pod q; document 7 makes its service account", "5 Gear g; document 6 makes its kind", "6 CustomResourceDefinition gears.example.com; created",
		"7 ServiceAccount runner; created",
	}, "\n"), "the dry run says")
	testenv.Equal(t, len(api.objects), 0, "the number of objects that a dry run has made is")
	testenv.Equal(t, applyText(t, api, wholeText, false), strings.Join([]string{
		"1 Namespace shop; created", "2 ConfigMap c; created", "3 Pod p; created", "4 Pod q; created", "5 Gear g; created",
		"6 CustomResourceDefinition gears.example.com; created", "7 ServiceAccount runner; created",
	}, "\n"), "applying says")
	testenv.Equal(t, strings.Join(api.wrote[:3], " "), "/namespaces/shop /apis/apiextensions.k8s.io/v1/customresourcedefinitions/gears.example.com /namespaces/default/serviceaccounts/runner", "what was written first is")
	testenv.Equal(t, strings.Count(applyText(t, api, wholeText, false), "; unchanged"), 7, "applied again, objects that stay are")
}

// TestAllMistakesAtOnce: each object is tried, and each mistake has its line.
func TestAllMistakesAtOnce(t *testing.T) {
	const text = `apiVersion: v1
kind: ConfigMap
metadata: {name: a}
data:
  good: "1"
  bad: 1
---
a: [
---
apiVersion: v1
kind: ConfigMap
metadata: {name: good}
---
apiVersion: extensions/v1
kind: ConfigMap
metadata: {name: b}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: none}
---
apiVersion: v1
kind: Pod
metadata: {name: x/y}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, namespace: shop}
spec:
  replicaz: 3
`
	want := []string{
		"1 ConfigMap a; line 6: data.bad: text is wanted: put it in quotes", "2  ; line 8: this is not YAML: did not find expected node content",
		"3 ConfigMap good; created", "4 ConfigMap b; line 14: the cluster has no kind ConfigMap of extensions/v1, and has it of v1",
		"5 Pod p; line 18: there is no namespace none", "6 Pod x/y; line 22: a name and a namespace have no / and no %, and are not . or ..",
		"7 Namespace shop; created", "8 Deployment d; line 30: the cluster has no kind Deployment of apps/v1",
	}
	for _, dryRun := range []bool{true, false} {
		api := &applyAPI{t: t, objects: map[string]anyObject{}, asked: map[string]int{}}
		testenv.Equal(t, applyText(t, api, text, dryRun), strings.Join(want, "\n"), "with dryRun %v it says", dryRun)
		testenv.Equal(t, len(api.wrote), map[bool]int{true: 0, false: 2}[dryRun], "the number of objects written is")
	}
	// Kubernetes' own kinds are checked as far as that goes without the API.
	api := &applyAPI{t: t, objects: map[string]anyObject{}, asked: map[string]int{}}
	testenv.Equal(t, applyText(t, api, "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec:\n  imagez: 3\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n", true),
		"1 Pod p; document 2 makes its namespace; line 5: unknown field spec.imagez\n2 Namespace shop; created", "it says")
}

// TestObjectsAfterAFailure: what an object needs has failed, or the API is away; nothing waits for it.
func TestObjectsAfterAFailure(t *testing.T) {
	api := &applyAPI{t: t, objects: map[string]anyObject{}, asked: map[string]int{}}
	const text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\ndata: {bad: 1}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: shop}\n"
	testenv.Equal(t, applyText(t, api, text, false), "1 Namespace shop; line 4: data.bad: text is wanted: put it in quotes\n"+
		"2 ConfigMap c; document 1 makes its namespace, and has failed; line 6: there is no namespace shop", "it says")
	// A kind that is never served ends the patience, once for all.
	api = &applyAPI{t: t, objects: map[string]anyObject{}, asked: map[string]int{"kind": -1000}}
	got := applyText(t, api, wholeText, false)
	testenv.Contains(t, got, "5 Gear g; line 20: the cluster has no kind Gear of example.com/v1\n", "it says")
	testenv.Equal(t, strings.Count(got, "; created"), 6, "objects that were made:")
	api.down = true
	testenv.Equal(t, strings.Count(applyText(t, api, wholeText, false), "this was not tried, since the cluster did not answer before"), 6, "objects that were not tried:")
}

// TestAliasesAreNotWrittenOut: a megabyte that aliases name a thousand times would take the console's memory.
func TestAliasesAreNotWrittenOut(t *testing.T) {
	bomb := "kind: ConfigMap\nmetadata: {name: a}\na: &a \"" + strings.Repeat("x", 10_000) + "\"\nb: [" + strings.Repeat("*a,", 3000) + "]\n"
	testenv.WantError(t, testenv.Err(objectOf(bomb)), "too much text")
	testenv.WantError(t, testenv.Err(helmObjects(bomb)), "too much text")
	o := testenv.Must(objectOf("kind: ConfigMap\nmetadata:\n  name: a\n  labels: &l {x: '1'}\nspec: {one: *l, two: *l}\n"))(t)
	testenv.Equal(t, fmt.Sprint(o["spec"]), "map[one:map[x:1] two:map[x:1]]", "aliases")
	testenv.Fails(t, testenv.Err(objectOf("a: &a {b: *a}")), "an anchor that contains itself is taken")
}
