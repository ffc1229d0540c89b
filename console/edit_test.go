// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// editAPI is an API with one object, which answers a patch with 'patched', and hands it to took.
func editAPI(live string, took func(contentType, body string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, live)
			return
		}
		body, _ := io.ReadAll(r.Body)
		took(r.Header.Get("Content-Type"), string(body))
		_, _ = io.WriteString(w, live)
	}
}

func TestEditWritesOnlyWhatTheUserChanged(t *testing.T) {
	const deployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a","namespace":"n","resourceVersion":"%s"},"spec":{"replicas":%s,"template":{"spec":{"containers":[{"name":"c","image":"%s"}]}}}}`
	object := func(kind, rv, replicas, image string) string {
		s := strings.Replace(strings.Replace(strings.Replace(deployment, "%s", rv, 1), "%s", replicas, 1), "%s", image, 1)
		if kind != "" {
			s = strings.Replace(s, `"apiVersion":"apps/v1","kind":"Deployment"`, `"apiVersion":"example.com/v1","kind":"`+kind+`"`, 1)
		}
		return s
	}
	for name, c := range map[string]struct {
		kind             string // one that is defined by a CRD, or a Deployment
		base, text, live [2]string
		contentType      string
		patch            string // "" for a conflict
	}{
		"others changed another field": {
			base: [2]string{"1", "i:1"}, text: [2]string{"1", "i:2"}, live: [2]string{"3", "i:1"},
			contentType: "application/strategic-merge-patch+json",
			patch:       `{"metadata":{"resourceVersion":"9"},"spec":{"template":{"spec":{"$setElementOrder/containers":[{"name":"c"}],"containers":[{"image":"i:2","name":"c"}]}}}}`,
		},
		"others changed the same field": {base: [2]string{"1", "i:1"}, text: [2]string{"2", "i:1"}, live: [2]string{"3", "i:1"}},
		"others changed it to the same": {
			base: [2]string{"1", "i:1"}, text: [2]string{"2", "i:1"}, live: [2]string{"2", "i:1"},
			contentType: "application/strategic-merge-patch+json", patch: `{"metadata":{"resourceVersion":"9"},"spec":{"replicas":2}}`,
		},
		"a kind of a CRD": {
			kind: "Thing", base: [2]string{"1", "i:1"}, text: [2]string{"2", "i:1"}, live: [2]string{"1", "i:3"},
			contentType: "application/merge-patch+json", patch: `{"metadata":{"resourceVersion":"9"},"spec":{"replicas":2}}`,
		},
		"a kind of a CRD, the same list": {kind: "Thing", base: [2]string{"1", "i:1"}, text: [2]string{"1", "i:2"}, live: [2]string{"1", "i:3"}},
	} {
		t.Run(name, func(t *testing.T) {
			var contentType, patch string
			s := consoleOf(t, editAPI(object(c.kind, "9", c.live[0], c.live[1]), func(kind, body string) { contentType, patch = kind, body }))
			body, err := json.Marshal(editRequest{
				Path: "/apis/apps/v1/namespaces/n/deployments/a", Base: object(c.kind, "1", c.base[0], c.base[1]), Text: object(c.kind, "1", c.text[0], c.text[1]),
			})
			testenv.NoError(t, err)
			code, text, _ := roundTrip(t, s, "POST", "/edit", string(body), "Authorization", bearer)
			testenv.True(t, patch == c.patch && contentType == c.contentType,
				"the API got %q %s\nwant %q %s", contentType, patch, c.contentType, c.patch)
			if want := map[bool]int{true: 409, false: 200}[c.patch == ""]; code != want {
				t.Errorf("the answer is %d %s, want %d", code, text, want)
			}
			testenv.False(t, c.patch == "" && !strings.Contains(text, "image: "+c.live[1]),
				"the answer to a conflict has not the object as it is: %s", text)
		})
	}
}

// An attacker who edits an object sends another object, or text that grows to gigabytes; the API must not get it.
func TestEditRefusesWhatIsNoEdit(t *testing.T) {
	const base = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
	s := consoleOf(t, noAPI(t))
	for name, text := range map[string]string{
		"another name":      strings.Replace(base, "name: a", "name: b", 1),
		"another kind":      strings.Replace(base, "ConfigMap", "Secret", 1),
		"no YAML":           "a: [",
		"no object":         "- a",
		"nothing":           "",
		"a key twice":       base + "data: {a: x}\ndata: {a: y}\n",
		"a bomb of aliases": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
	} {
		body := testenv.Must(json.Marshal(editRequest{Path: "/api/v1/namespaces/n/configmaps/a", Base: base, Text: text}))(t)
		if code, answer, _ := roundTrip(t, s, "POST", "/edit", string(body), "Authorization", bearer); code != http.StatusUnprocessableEntity {
			t.Errorf("%s: %d %s", name, code, answer)
		}
	}
}

// TestDeepObjectsAreNotWrittenAsYAML: each line of YAML has the whole indentation.
func TestDeepObjectsAreNotWrittenAsYAML(t *testing.T) {
	deep := any(slices.Repeat([]any{int64(0)}, 10000))
	for range 5000 {
		deep = map[string]any{"a": deep}
	}
	if text, err := toYAML(deep); err == nil || !strings.Contains(err.Error(), "kubectl get -o json") {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	wide := map[string]any{"data": map[string]any{"text": strings.Repeat("a line\n", 200000)}}
	if text, err := toYAML(wide); err != nil || len(text) < 1<<20 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// TestLastAppliedStays: the annotation of kubectl apply is not in the text, and a patch that removes all the others
// does not remove it.
func TestLastAppliedStays(t *testing.T) {
	const live = `{"apiVersion":"%s","kind":"%s","metadata":{"name":"a","namespace":"n","resourceVersion":"9","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}"%s}}}`
	for _, kind := range [][2]string{{"v1", "ConfigMap"}, {"example.com/v1", "Thing"}} {
		object := fmt.Sprintf(live, kind[0], kind[1], `,"team":"x"`)
		var patch string
		s := consoleOf(t, editAPI(object, func(_, body string) { patch = body }))
		const path = "/api/v1/namespaces/n/configmaps/a"
		_, answer, _ := roundTrip(t, s, "GET", "/object?edit=true&path="+path, "", asUser...)
		var opened objectResponse
		testenv.NoError(t, json.Unmarshal([]byte(answer), &opened))
		testenv.False(t, strings.Contains(opened.YAML, "last-applied") || !strings.Contains(opened.YAML, "team: x"), "the text is %s", opened.YAML)
		text := strings.Replace(opened.YAML, "  annotations:\n    team: x\n", "", 1)
		body := testenv.Must(json.Marshal(editRequest{Path: path, Base: opened.YAML, Text: text}))(t)
		code, answer, _ := roundTrip(t, s, "POST", "/edit", string(body), asUser...)
		testenv.Equal(t, code, 200, "%s", answer)
		testenv.Equal(t, patch, `{"metadata":{"annotations":{"team":null},"resourceVersion":"9"}}`, "the patch is")

		// Alone it leaves nothing behind.
		s = consoleOf(t, editAPI(fmt.Sprintf(live, kind[0], kind[1], ""), nil))
		_, answer, _ = roundTrip(t, s, "GET", "/object?edit=true&path="+path, "", asUser...)
		testenv.False(t, strings.Contains(answer, "annotations:"), "the text is %s", answer)
	}
}

// TestMistakesOfAnEditHaveLines: the API's words are turned into short ones, and stay beside them.
func TestMistakesOfAnEditHaveLines(t *testing.T) {
	const live = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a","namespace":"shop","resourceVersion":"9"},"spec":{"replicas":1,"template":{"metadata":{"labels":{"a":"b"}}}}}`
	const base = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: a\n  namespace: shop\nspec:\n  replicas: 1\n  template: {metadata: {labels: {\n    a: b}}}\n"
	for name, c := range map[string]struct{ cause, replaced, by, want string }{
		"an unknown field":  {`Invalid value: \"map[]\": strict decoding error: unknown field \"spec.replicaz\"`, "replicas", "replicaz", `[{7 unknown field spec.replicaz}]`},
		"a wrong type":      {`Invalid value: \"map[]\": unrecognized type: int32`, ": 1", ": one", `[{7 spec.replicas: a whole number is wanted, and there is text}]`},
		"a number in a map": {`Invalid value: \"map[]\": unrecognized type: string`, "a: b", "a: 1", `[{9 spec.template.metadata.labels.a: text is wanted: put it in quotes}]`},
	} {
		s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				_, _ = io.WriteString(w, live)
				return
			}
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = io.WriteString(w, `{"kind":"Status","code":422,"reason":"Invalid","message":"\"\" is invalid: patch: `+c.cause+`","details":{"causes":[{"reason":"FieldValueInvalid","message":"`+c.cause+`","field":"patch"}]}}`)
		})
		body := testenv.Must(json.Marshal(editRequest{Path: "/apis/apps/v1/namespaces/n/deployments/a", Base: base, Text: strings.Replace(base, c.replaced, c.by, 1)}))(t)
		code, answer, _ := roundTrip(t, s, "POST", "/edit", string(body), asUser...)
		var got struct {
			Problems []problem
			Said     string
		}
		testenv.NoError(t, json.Unmarshal([]byte(answer), &got))
		testenv.Equal(t, fmt.Sprint(code, got.Problems), "422 "+c.want, "%s: %s", name, answer)
		testenv.Contains(t, got.Said, `"" is invalid: patch`, "the API's own words are")
	}
}
