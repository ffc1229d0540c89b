// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDocumentationHasAllAnnotations compares the tables of docs/ingress-nginx.md with Annotations and ConfigKeys.
func TestDocumentationHasAllAnnotations(t *testing.T) {
	testenv.True(t, slices.IsSortedFunc(Annotations, func(a, b Annotation) int { return strings.Compare(a.Name, b.Name) }), "the annotations are not in the order of their names")
	testenv.True(t, slices.IsSortedFunc(ConfigKeys, func(a, b ConfigKey) int { return strings.Compare(a.Name, b.Name) }), "the keys are not in the order of their names")
	var want strings.Builder
	want.WriteString("\n| annotation | support | |\n| --- | --- | --- |\n")
	for _, a := range Annotations {
		fmt.Fprintf(&want, "| %s | %s | %s |\n", a.Name, a.Support, a.Note)
	}
	compareTable(t, "<!-- table -->", "<!-- end -->", want.String())
	want.Reset()
	want.WriteString("\n| key | support | default of the annotation | |\n| --- | --- | --- | --- |\n")
	for _, k := range ConfigKeys {
		if a, ok := annotationOf(k.Annotation); k.Annotation != "" && (!ok || a.Support != k.Support) {
			t.Errorf("the key %s is %s, and its annotation %s", k.Name, k.Support, a.Support)
		}
		fmt.Fprintf(&want, "| %s | %s | %s | %s |\n", k.Name, k.Support, k.Annotation, k.Note)
	}
	for _, kind := range tuningKeys {
		fmt.Fprintf(&want, "| %s | %s | | %s |\n", strings.ReplaceAll(strings.ReplaceAll(kind.names, "- ", "-\\* "), " ", ", "), Ignored, kind.note)
	}
	compareTable(t, "<!-- keys -->", "<!-- end of keys -->", want.String())
}

func compareTable(t *testing.T, begin, end, want string) {
	const file = "../../docs/ingress-nginx.md"
	text := testenv.Must(os.ReadFile(file))(t)
	before, rest, ok := strings.Cut(string(text), begin)
	have, after, closed := strings.Cut(rest, end)
	testenv.Require(t, ok && closed, "%s has no table between %s and %s", file, begin, end)
	if have == want {
		return
	}
	testenv.Require(t, os.Getenv("CORACLE_UPDATE") != "",
		"the table of %s after %s is not that of the code; CORACLE_UPDATE=1 writes it", file, begin)
	testenv.NoError(t, os.WriteFile(file, []byte(before+begin+want+end+after), 0o644))
}
