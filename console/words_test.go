// SPDX-License-Identifier: Apache-2.0

package console

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// apiError returns an error of the API that has only a message.
func apiError(code int32, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Message: message}}
}

// TestMessagesOfTheAPIInWords: the messages are those of Kubernetes 1.37, as an API server sent them.
func TestMessagesOfTheAPIInWords(t *testing.T) {
	invalid := func(errs ...*field.Error) error {
		return apierrors.NewInvalid(schema.GroupKind{Group: "apps", Kind: "Deployment"}, "web", errs)
	}
	spec := field.NewPath("spec")
	for name, c := range map[string]struct {
		err  error
		want string // FIELD|TEXT, one a line
	}{
		"unknown field of a patch": {
			invalid(field.Invalid(field.NewPath("patch"), "map[metadata:map[resourceVersion:2225] spec:map[replicas:<nil> replicaz:1]]", `strict decoding error: unknown field "spec.replicaz"`)),
			"spec.replicaz|unknown field spec.replicaz",
		},
		"several unknown fields": {
			apiError(400, `Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "spec.replicaz", duplicate field "spec.a\"b"`),
			"spec.replicaz|unknown field spec.replicaz\nspec.a\"b|spec.a\"b is there twice",
		},
		"unknown field of an apply": {
			apiError(500, `failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.replicaz: field not declared in schema`),
			"spec.replicaz|unknown field spec.replicaz",
		},
		"several errors of an apply": {
			apiError(500, "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): errors:\n  .spec.replicas: expected numeric (int or float), got string\n  .spec.template.spec.containers[name=\"a\"].imag: field not declared in schema\n  .spec.template.spec.containers: element 1: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)"),
			"spec.replicas|spec.replicas: a number is wanted, without quotes\nspec.template.spec.containers[name=\"a\"].imag|unknown field spec.template.spec.containers[name=\"a\"].imag\nspec.template.spec.containers[1]|spec.template.spec.containers[1]: one of the fields [\"name\"] is required",
		},
		"a number for a text": {
			apiError(500, `failed to create typed patch object (default/c; /v1, Kind=ConfigMap): .data.a: expected string, got &value.valueUnstructured{Value:1}`),
			"data.a|data.a: text is wanted: put it in quotes",
		},
		"required": {invalid(field.Required(spec.Child("template", "spec", "containers").Index(0).Child("image"), "")),
			"spec.template.spec.containers[0].image|spec.template.spec.containers[0].image is required"},
		"out of bounds": {invalid(field.Invalid(spec.Child("replicas"), int32(-2), "must be greater than or equal to 0")),
			"spec.replicas|spec.replicas: must be greater than or equal to 0 (it is -2)"},
		"not supported": {invalid(field.NotSupported(spec.Child("type"), "NodePorts", []string{"ClusterIP", "NodePort"})),
			`spec.type|spec.type: "NodePorts" is not one of "ClusterIP", "NodePort"`},
		"immutable": {invalid(field.Invalid(spec.Child("selector"), metav1.LabelSelector{MatchLabels: map[string]string{"app": "x: y"}}, "field is immutable")),
			"spec.selector|spec.selector: cannot be changed: delete the object and create it again"},
		"forbidden with a comparison": {invalid(field.Forbidden(spec, "pod updates may not change fields other than `spec.containers[*].image`\n@@ -1 +1 @@\n{...")),
			"spec|spec: pod updates may not change fields other than `spec.containers[*].image`"},
		"by a CRD's schema": {invalid(field.TypeInvalid(spec.Child("size"), "big", `spec.size in body must be of type integer: "big"`)),
			`spec.size|spec.size: must be of type integer: "big"`},
		"several": {invalid(field.Duplicate(spec.Child("ports").Index(1), 80), field.NotFound(spec.Child("volumes").Index(0).Child("name"), "tmp")),
			"spec.ports[1]|spec.ports[1]: 80 is there twice\nspec.volumes[0].name|spec.volumes[0].name: \"tmp\" is not there"},
		"Go's decoder": {apiError(400, `Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`),
			"spec.replicas|spec.replicas: a whole number is wanted, and there is text"},
		"quota": {
			apiError(403, `pods "web" is forbidden: exceeded quota: few, requested: limits.cpu=2,pods=1, used: limits.cpu=1,pods=3, limited: limits.cpu=2,pods=3`),
			"|the quota few is exceeded. limits.cpu: 1 of 2 are used, and this needs 2 more; pods: 3 of 3 are used, and this needs 1 more",
		},
		"quota of what is not said": {apiError(403, `pods "web" is forbidden: failed quota: few: must specify limits.cpu for: box; limits.memory for: box`),
			"|the quota few is only for pods that say limits.cpu for: box; limits.memory for: box"},
		"no right": {
			apiError(403, `deployments.apps "web" is forbidden: User "ada" cannot patch resource "deployments" in API group "apps" in the namespace "shop"`),
			"|you may not patch deployments.apps in namespace shop",
		},
		"no right in the cluster": {apiError(403, `namespaces is forbidden: User "system:serviceaccount:a:b" cannot create resource "namespaces" in API group "" at the cluster scope`),
			"|you may not create namespaces"},
		"webhook": {apiError(403, `admission webhook "no.example.com" denied the request: the label team is missing`),
			"|the admission webhook no.example.com refuses it: the label team is missing"},
		"webhook that is away": {apiError(500, `Internal error occurred: failed calling webhook "no.example.com": failed to call webhook: Post "https://no.a.svc:443/?timeout=10s": service "no" not found`),
			`|the admission webhook no.example.com has to be asked, and does not answer: Post "https://no.a.svc:443/?timeout=10s": service "no" not found`},
		"policy": {apiError(422, `deployments.apps "web" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'all' denied request: failed expression: object.spec.replicas <= 5`),
			"|the admission policy few refuses it: failed expression: object.spec.replicas <= 5"},
		"pod security": {apiError(403, `pods "web" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true)`),
			`|the namespace takes only pods of the security level "restricted": runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true)`},
		"no namespace":      {apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "shop"), "|there is no namespace shop"},
		"namespace goes":    {apiError(403, `configmaps "a" is forbidden: unable to create new content in namespace shop because it is being terminated`), "|the namespace shop is being deleted"},
		"no account":        {apiError(403, `pods "web" is forbidden: error looking up service account shop/runner: serviceaccount "runner" not found`), "|there is no service account shop/runner"},
		"no leader":         {apiError(500, "etcdserver: no leader"), "|" + noLeaderText},
		"no known form":     {apiError(418, "I am a teapot"), "|I am a teapot"},
		"not of the API":    {errors.New("dial tcp: refused"), "|dial tcp: refused"},
		"a kind's decoding": {decodeStrictly(anyObject{"apiVersion": "apps/v1", "kind": "Deployment", "spec": map[string]any{"replicas": "three"}}), "spec.replicas|spec.replicas: a whole number is wanted, and there is text"},
		"a kind's fields":   {decodeStrictly(anyObject{"apiVersion": "apps/v1", "kind": "Deployment", "spec": map[string]any{"replicaz": int64(3)}}), "spec.replicaz|unknown field spec.replicaz"},
		"another owner": {
			apierrors.NewApplyConflict([]metav1.StatusCause{{Type: metav1.CauseTypeFieldManagerConflict, Message: `conflict with "kubectl-client-side-apply" using apps/v1`, Field: ".spec.replicas"}}, "Apply failed with 1 conflict"),
			"spec.replicas|spec.replicas: kubectl-client-side-apply has set another value. Remove the field here, or edit the object itself",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, s := range messagesOf(c.err) {
				got = append(got, s.field+"|"+s.text)
			}
			testenv.Equal(t, strings.Join(got, "\n"), c.want, "the words are")
		})
	}
	// No message is too odd.
	for _, message := range []string{"", ": ", "strict decoding error: ", "failed to create typed patch object (): ", `cannot unmarshal x into Go value of type `, "Invalid value: "} {
		messagesOf(apiError(422, message))
		causeMessage(metav1.StatusCause{Message: message})
	}
}

const manyDocuments = `# a comment
apiVersion: v1
kind: ConfigMap
metadata: {name: a, labels: {app.kubernetes.io/name: x}}
---
# the second
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 1
  template:
    spec:
      containers:
      - name: a
        image: x
        ports:
        - containerPort: 80
          protocol: TCP
        - containerPort: 80
          protocol: UDP
      - name: b
--- # nothing

---
kind: List
items:
- kind: B
- kind: C
  metadata: {name: c}
- just text
`

func TestLinesOfFields(t *testing.T) {
	got := testenv.Must(sourcesOf(manyDocuments))(t)
	testenv.Equal(t, len(got), 5, "the number of objects is")
	for _, c := range []struct {
		source int
		field  string
		line   int
	}{
		{0, "", 2}, {0, "data.a", 2}, {0, "metadata.labels.app.kubernetes.io/name", 4}, {0, "metadata.labels[app.kubernetes.io/name]", 4},
		{1, "", 7}, {1, "spec.replicas", 12}, {1, "spec.replicaz", 11}, {1, "spec.template.spec.containers[1].image", 23},
		{1, `spec.template.spec.containers[name="b"].imag`, 23}, {1, `.spec.template.spec.containers[name="a"].ports[containerPort=80,protocol="UDP"].x`, 21},
		{1, "spec.template.spec.containers.image", 17}, {1, "spec.template.spec.containers[7].image", 15}, {1, "[[]]..]", 7}, {1, "spec.template[", 13},
		{2, "", 29}, {3, "metadata.name", 31}, {4, "", 32},
	} {
		if line := got[c.source].lineOf(c.field); line != c.line {
			t.Errorf("line %d of %q of object %d, want %d", line, c.field, c.source, c.line)
		}
	}
	testenv.Equal(t, fmt.Sprint(got[4].problems, got[3].number), "[{32 this is not an object: it begins with apiVersion, kind and metadata}] 3", "the item that is none has")
}

// TestMistakesOfATextHaveTheirLines: each document of a text is read, whatever the others are.
func TestMistakesOfATextHaveTheirLines(t *testing.T) {
	got := testenv.Must(sourcesOf("%YAML 1.1\n---\na: [\n---\nkind: A\ndata: {a: x}\ndata: {a: y}\n---\n- x\n---\nb: *none\n---\nkind: B\n...\n"))(t)
	var lines []string
	for _, s := range got {
		lines = append(lines, fmt.Sprint(s.number, s.problems))
	}
	for i, want := range []string{"1 [{3 this", "2 [{7 this is not YAML: key", "3 [{9 this is not an object", "4 [{11 this is not YAML: unknown anchor", "5 []"} {
		testenv.True(t, i < len(lines) && strings.HasPrefix(lines[i], want), "the problems are %q, want %s", lines, want)
	}
}

// An author sends what costs much to read; the answer must come soon and say what to do.
func TestHostileTexts(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"nothing":                {"# a\n---\n---\n", "there is no object in it"},
		"10,000 documents":       {strings.Repeat("---\n{}\n", 10000), "there are 10000 objects in it, and 1000 at most are taken at once: split the text"},
		"a list of 10,000":       {"kind: List\nitems: [" + strings.Repeat("{},", 10000) + "]\n", "there are 10000 objects in it"},
		"a node in itself":       {"a: &a [*a]\n", "contains itself"},
		"a line of a million":    {"apiVersion: v1\nkind: " + strings.Repeat("x", 1<<20) + "\nmetadata: {name: a}\n", ""},
		"brackets":               {strings.Repeat("[", 20000), "exceeded max depth"},
		"a million empty values": {"a: [" + strings.Repeat(",", 10) + "]\n", "did not find expected node content"},
		"a bomb of aliases":      {"a: &a [" + strings.Repeat("x,", 9) + "x]\n" + bomb("abcdefgh"), "stand for too much text"},
	} {
		sources, err := sourcesOf(c.text)
		for _, s := range sources {
			for _, p := range s.problems {
				err = errors.Join(err, errors.New(p.Text))
			}
			s.lineOf("a.b[0].c")
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %.300v, want %s", name, err, c.want)
		}
	}
}

// bomb returns lines each of which names the one before ten times.
func bomb(names string) string {
	var out strings.Builder
	for i := 1; i < len(names); i++ {
		fmt.Fprintf(&out, "%c: &%c [%s*%c]\n", names[i], names[i], strings.Repeat("*"+names[i-1:i]+",", 9), names[i-1])
	}
	return out.String()
}

// TestRefusalsOfTheAPIInWords: whatever way a request goes to the API, its answer has words and the API's own text.
func TestRefusalsOfTheAPIInWords(t *testing.T) {
	const message = `deployments.apps \"web\" is forbidden: User \"ada\" cannot patch resource \"deployments\" in API group \"apps\" in the namespace \"shop\"`
	s := consoleOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"kind":"Status","code":403,"reason":"Forbidden","message":"`+message+`"}`)
	})
	for _, path := range []string{"/k8s/apis/apps/v1/namespaces/shop/deployments/web", "/object?path=/apis/apps/v1/namespaces/shop/deployments/web"} {
		code, answer, _ := roundTrip(t, s, "GET", path, "", asUser...)
		testenv.Equal(t, code, 403, "%s", answer)
		testenv.Equal(t, answer, `{"code":403,"message":"you may not patch deployments.apps in namespace shop","reason":"Forbidden","said":"`+message+`"}`, "%s", path)
	}
}
