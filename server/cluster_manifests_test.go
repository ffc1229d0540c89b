// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const crd = `
apiVersion: example.com/v1
kind: Widget
metadata: {name: first}
spec: {size: 1}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}
`

func writeManifest(t *testing.T, o Options, name, text string) {
	t.Helper()
	path := filepath.Join(o.ManifestsDir, name)
	testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	testenv.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

func configMap(name, value string) string {
	return "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + ", namespace: default}\ndata: {k: \"" + value + "\"}\n"
}

func testManifests(t *testing.T, o Options, c *clients) {
	ctx := t.Context()
	value := func(name string) string {
		got, err := c.kube.CoreV1().ConfigMaps("default").Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return "(none)"
		case err != nil:
			return err.Error()
		}
		return got.Data["k"]
	}
	is := func(name, want string) {
		t.Helper()
		waitFor(t, name+" to be "+want, func() bool { return value(name) == want })
	}
	widgets := c.dynamic.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}).Namespace("default")
	waitFor(t, "a custom resource beside its definition, that was there before the first start", func() bool {
		_, err := widgets.Get(ctx, "first", metav1.GetOptions{})
		return err == nil
	})

	writeManifest(t, o, "kept.yaml", configMap("kept", "1"))
	writeManifest(t, o, "sub/two.yml", configMap("a", "1")+configMap("b", "1"))
	is("kept", "1")
	is("b", "1")
	// Changed, and one object less.
	writeManifest(t, o, "sub/two.yml", configMap("a", "2"))
	is("a", "2")
	is("b", "(none)")
	// Moved to another file: never deleted on the way.
	uid := func() string {
		got := testenv.Must(c.kube.CoreV1().ConfigMaps("default").Get(ctx, "a", metav1.GetOptions{}))(t)
		return string(got.UID) + got.Annotations["coracle.dev/manifest"]
	}
	before := uid()
	testenv.NoError(t, os.Rename(filepath.Join(o.ManifestsDir, "sub/two.yml"), filepath.Join(o.ManifestsDir, "moved.yml")))
	waitFor(t, "the object to be the other file's", func() bool {
		return uid() == strings.Replace(before, "sub/two.yml", "moved.yml", 1)
	})
	// Malformed: nothing of it, what was there stays, and it is said where.
	writeManifest(t, o, "moved.yml", configMap("a", "3")+configMap("c", "1")+"---\nkind: {\n")
	waitFor(t, "an event with the line", func() bool {
		events, err := c.kube.CoreV1().Events("kube-system").List(ctx, metav1.ListOptions{FieldSelector: "reason=Malformed"})
		return err == nil && len(events.Items) == 1 && strings.Contains(events.Items[0].Message, "moved.yml:1")
	})
	part := func() status.Component {
		components := o.Board.Components()
		return components[slices.IndexFunc(components, func(c status.Component) bool { return c.Name == "manifests" })]
	}
	waitFor(t, "the status report to say so", func() bool { return part().State == status.Degraded && strings.Contains(part().Message, "moved.yml:1") })
	// Others go on meanwhile.
	writeManifest(t, o, "other.yaml", configMap("other", "1"))
	is("other", "1")
	if value("a") != "2" || value("c") != "(none)" {
		t.Errorf("a malformed file changed something: a is %s, c is %s", value("a"), value("c"))
	}
	// Skipped: left as it is.
	writeManifest(t, o, "other.yaml.skip", "")
	writeManifest(t, o, "other.yaml", configMap("other", "2"))
	writeManifest(t, o, "moved.yml", configMap("a", "4"))
	is("a", "4")
	testenv.Equal(t, value("other"), "1", "a skipped file was applied:")
	// A namespace that comes later, in another file.
	writeManifest(t, o, "1-needs.yaml", strings.Replace(configMap("late", "1"), "namespace: default", "namespace: late", 1))
	writeManifest(t, o, "2-namespace.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: late}\n")
	waitFor(t, "what needs a later file", func() bool {
		_, err := c.kube.CoreV1().ConfigMaps("late").Get(ctx, "late", metav1.GetOptions{})
		return err == nil
	})
	waitFor(t, "the status report to be content", func() bool { return part().State == status.Running })
	testenv.NoError(t, os.Remove(filepath.Join(o.ManifestsDir, "moved.yml")))
	is("a", "(none)")
	waitFor(t, "the record of the removed file to go", func() bool { return !strings.Contains(c.recordsAndObjects(t), "moved.yml") })
}

// recordsAndObjects says which manifests' records and objects there are, in which versions.
func (c *clients) recordsAndObjects(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for namespace, selector := range map[string]string{"kube-system": "coracle.dev/manifest-record", "default": ""} {
		list := testenv.Must(c.kube.CoreV1().ConfigMaps(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: selector}))(t)
		for _, o := range list.Items {
			fmt.Fprintln(&out, o.Name, o.ResourceVersion, o.Data["file"], o.Data["status"])
		}
	}
	lines := strings.Split(out.String(), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
