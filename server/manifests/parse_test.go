// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestParseOrdersAndCountsLines(t *testing.T) {
	const text = `# a comment
---
apiVersion: example.com/v1
kind: Widget
metadata: {name: w}
--- # and now the rest
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: a, namespace: x}
- {apiVersion: v1, kind: Namespace, metadata: {name: x}}
---

# a comment before the object
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: widgets.example.com
---
`
	objects := testenv.Must(parse("f.yaml", []byte(text)))(t)
	var got []string
	for _, o := range objects {
		got = append(got, o.ref().String())
	}
	want := []string{"Namespace x", "CustomResourceDefinition widgets.example.com", "Widget w", "ConfigMap x/a"}
	testenv.EqualSlices(t, got, want, "")
	if objects[1].line != 17 || objects[2].line != 3 || objects[3].line != 7 {
		t.Errorf("lines %d, %d, %d", objects[1].line, objects[2].line, objects[3].line)
	}
}

func TestParseJSONAndNothing(t *testing.T) {
	testenv.Equal(t, len(testenv.Must(parse("f.json", []byte(`{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}`)))(t)), 1, "")
	for _, empty := range []string{"", "# nothing\n", "---\n---\n"} {
		if o, err := parse("f.yaml", []byte(empty)); err != nil || o == nil || len(o) != 0 {
			t.Errorf("%q: %v, %v", empty, o, err)
		}
	}
}

func TestParseErrorsNameTheLine(t *testing.T) {
	const good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n"
	for _, c := range []struct{ text, want string }{
		{good + "apiVersion: v1\nkind: [\n", "f.yaml:"},
		{good + "apiVersion: v1\n\tkind: x\n", "f.yaml:6:"},
		{good + "apiVersion: v1\nkind: ConfigMap\nkind: Secret\n", "f.yaml:7:"},
		{good + "\n# here\nkind: ConfigMap\n", "f.yaml:7: apiVersion is missing"},
		{good + "apiVersion: v1\nmetadata: {name: a}\n", "f.yaml:5:"},
		{good + "apiVersion: v1\nkind: Pod\nmetadata: {generateName: a}\n", "f.yaml:5: generateName"},
		{good + "apiVersion: v1\nkind: Pod\n", "metadata.name is missing"},
		{good + good, "f.yaml:5: ConfigMap a is in this file twice, at line 1 too"},
		{good + "just text\n", "f.yaml:5:"},
		{good + "apiVersion: v1\nkind: List\nitems: [{kind: Pod}]\n", "f.yaml:5: in the List: apiVersion"},
	} {
		o, err := parse("f.yaml", []byte(c.text))
		if err == nil || !strings.HasPrefix(err.Error(), "f.yaml:") || !strings.Contains(err.Error(), c.want) || o != nil {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
}

func TestScanFindsManifestsOnly(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.yaml", "b.yml", "c.json", "d.txt", ".hidden.yaml", "sub/e.yaml", ".git/f.yaml", "g.yaml", "g.yaml.skip", "a.yaml~"} {
		path := filepath.Join(dir, name)
		testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testenv.NoError(t, os.WriteFile(path, []byte(name), 0o644))
	}
	testenv.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "broken.yaml")))
	found := testenv.Must(scan(dir))(t)
	want := []string{"a.yaml", "b.yml", "broken.yaml", "c.json", "g.yaml", "sub/e.yaml"}
	testenv.EqualSlices(t, slices.Sorted(maps.Keys(found)), want, "found")
	testenv.False(t, !found["g.yaml"].skip || found["a.yaml"].skip || found["broken.yaml"].err == nil, "%+v", found)
	testenv.Fails(t, testenv.Err(scan(filepath.Join(dir, "gone"))), "a folder that is gone counts as empty: everything would be deleted")
}

func TestRecordKeepsItsObjects(t *testing.T) {
	objects := testenv.Must(parse("f.yaml", []byte("{apiVersion: v1, kind: Namespace, metadata: {name: x}}\n---\n{apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: x}}")))(t)
	r := &inventory{file: "f.yaml", server: "s", status: statusApplied, hash: "h", objects: []ref{objects[0].ref(), objects[1].ref()}}
	stored := configMapOf(r)
	got, err := parseInventory(stored)
	if err != nil || got.file != r.file || got.server != r.server || got.status != r.status || got.hash != r.hash || !slices.Equal(got.objects, r.objects) {
		t.Errorf("%+v, %v", got, err)
	}
	stored.Data["objects"] += "by hand\n"
	testenv.Fails(t, testenv.Err(parseInventory(stored)), "a damaged inventory was read")
}
