// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestDocumentationHasAllAnnotations compares the table of docs/ingress-nginx.md with Annotations.
func TestDocumentationHasAllAnnotations(t *testing.T) {
	if !slices.IsSortedFunc(Annotations, func(a, b Annotation) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the annotations are not in the order of their names")
	}
	var want strings.Builder
	want.WriteString("\n| annotation | verdict | |\n| --- | --- | --- |\n")
	for _, a := range Annotations {
		fmt.Fprintf(&want, "| %s | %s | %s |\n", a.Name, a.Verdict, a.Note)
	}
	const file, begin, end = "../../docs/ingress-nginx.md", "<!-- table -->", "<!-- end -->"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	have, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no table between %s and %s", file, begin, end)
	}
	if have == want.String() {
		return
	}
	if os.Getenv("CORACLE_UPDATE") == "" {
		t.Fatalf("the table of %s is not that of Annotations; CORACLE_UPDATE=1 writes it", file)
	}
	if err := os.WriteFile(file, []byte(before+begin+want.String()+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
