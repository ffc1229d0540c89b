// SPDX-License-Identifier: Apache-2.0

package console

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// mustObject reads an object of a test.
func mustObject(t *testing.T, text string) anyObject {
	t.Helper()
	o, err := objectOf(text)
	testenv.NoError(t, err, "%s", text)
	return o
}

// Two who change the same field, or the same list that is one value, are in conflict; two who change different ones are
// not, and what both wrote is kept.
func TestConflictsOfTwoWhoEdit(t *testing.T) {
	head := func(apiVersion, kind, spec string) string {
		return "apiVersion: " + apiVersion + "\nkind: " + kind + "\nmetadata: {name: a, namespace: n, uid: u}\n" + spec + "\n"
	}
	pod := func(containers string) string { return head("v1", "Pod", "spec: {containers: ["+containers+"]}") }
	for name, c := range map[string]struct {
		base, mine, others string
		field              string // that is in conflict; "" for none
		merged             string // spec, rules or data of the object with both changes
	}{
		"different containers": {
			base: pod("{name: a, image: i1}, {name: b, image: i1}"), mine: pod("{name: a, image: i2}, {name: b, image: i1}"), others: pod("{name: a, image: i1}, {name: b, image: i3}"),
			merged: `{"containers":[{"image":"i2","name":"a"},{"image":"i3","name":"b"}]}`,
		},
		"one more container each": {
			base: pod("{name: a}"), mine: pod("{name: a}, {name: m}"), others: pod("{name: a}, {name: t}"),
			merged: `{"containers":[{"name":"a"},{"name":"m"},{"name":"t"}]}`,
		},
		"the same container's image": {
			base: pod("{name: a, image: i1}"), mine: pod("{name: a, image: i2}"), others: pod("{name: a, image: i3}"), field: "spec.containers.a.image",
		},
		"a container that others removed": {
			base: pod("{name: a, image: i1}, {name: b, image: i1}"), mine: pod("{name: a, image: i1}, {name: b, image: i2}"), others: pod("{name: a, image: i1}"), field: "spec.containers.b.image",
		},
		"arguments, which are one value": {
			base: pod("{name: a, args: [x]}"), mine: pod("{name: a, args: [x, y]}"), others: pod("{name: a, args: [z, x]}"), field: "spec.containers.a.args",
		},
		"a rule of a NetworkPolicy": {
			base:   head("networking.k8s.io/v1", "NetworkPolicy", "spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"),
			mine:   head("networking.k8s.io/v1", "NetworkPolicy", "spec: {podSelector: {}, ingress: [{from: [{podSelector: {}, namespaceSelector: {}}]}]}"),
			others: head("networking.k8s.io/v1", "NetworkPolicy", "spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 443}]}]}"),
			field:  "spec.ingress",
		},
		"a rule of a Role": {
			base:   head("rbac.authorization.k8s.io/v1", "Role", "rules: [{apiGroups: [''], resources: [secrets], verbs: [get, list]}]"),
			mine:   head("rbac.authorization.k8s.io/v1", "Role", "rules: [{apiGroups: [''], resources: [secrets], verbs: [list, get]}]"),
			others: head("rbac.authorization.k8s.io/v1", "Role", "rules: [{apiGroups: [''], resources: [secrets], resourceNames: [one], verbs: [get, list]}]"),
			field:  "rules",
		},
		"a selector that is replaced whole": {
			base:   head("policy/v1", "PodDisruptionBudget", "spec: {selector: {matchLabels: {a: b}}}"),
			mine:   head("policy/v1", "PodDisruptionBudget", "spec: {selector: {matchLabels: {a: c}}}"),
			others: head("policy/v1", "PodDisruptionBudget", "spec: {selector: {matchLabels: {a: b, d: e}}}"),
			field:  "spec.selector",
		},
		"a kind of a CRD, other fields": {
			base: head("example.com/v1", "Thing", "spec: {p: 1, l: [1]}"), mine: head("example.com/v1", "Thing", "spec: {p: 2, l: [1]}"), others: head("example.com/v1", "Thing", "spec: {p: 1, q: 3, l: [1, 2]}"),
			merged: `{"l":[1,2],"p":2,"q":3}`,
		},
		"a kind of a CRD, a list": {
			base: head("example.com/v1", "Thing", "spec: {l: [1]}"), mine: head("example.com/v1", "Thing", "spec: {l: [1, 2]}"), others: head("example.com/v1", "Thing", "spec: {l: [0, 1]}"), field: "spec.l",
		},
	} {
		t.Run(name, func(t *testing.T) {
			base, mine, others := mustObject(t, c.base), mustObject(t, c.mine), mustObject(t, c.others)
			p := testenv.Must(newPatch(base, mine))(t)
			testenv.Equal(t, p.userChanges.conflict(p.changesBetween(base, others)), c.field, "the conflict is")
			merged := testenv.Must(p.onTopOf(others))(t)
			if c.merged == "" {
				return
			}
			if want := mustObject(t, "x: "+c.merged)["x"]; !equal(merged["spec"], want) {
				t.Errorf("both together: %v, want %v", merged["spec"], want)
			}
		})
	}
}

func TestAnotherObjectOfTheNameIsAConflict(t *testing.T) {
	base := mustObject(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, uid: one}\n")
	p := testenv.Must(newPatch(base, base))(t)
	again := mustObject(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, uid: two}\n")
	testenv.Fails(t, p.checkIdentity(again), "a new object of the name was taken for the one of before")
	testenv.Check(t, p.checkIdentity(base))
}

func TestWholeNumbersStayAsTheyAre(t *testing.T) {
	o := mustObject(t, "spec: {num: 9007199254740993, f: 1.5}\n")
	text, err := o.yaml()
	testenv.True(t, err == nil && strings.Contains(text, "num: 9007199254740993") && strings.Contains(text, "f: 1.5"), "%s, %v", text, err)
	testenv.True(t, mustObject(t, "num: 9007199254740993")["num"] != mustObject(t, "num: 9007199254740992")["num"], "two numbers are the same")
	testenv.Check(t, testenv.Err(yaml.YAMLToJSON([]byte(text))))
}

func TestLongListIsPatchedWhole(t *testing.T) {
	list := func(image string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n" + strings.Repeat("  - {name: x, image: "+image+"}\n", longList+1)
	}
	p, err := newPatch(mustObject(t, list("a")), mustObject(t, list("b")))
	testenv.False(t, err != nil || p.schema != nil, "a list of %d elements is patched by elements: %v", longList+1, err)
}

func TestManyLinesAreNotCompared(t *testing.T) {
	var a, b strings.Builder
	for i := range maxDiffLines + 2 {
		a.WriteString(strings.Repeat("a", i%7) + "\n")
		b.WriteString(strings.Repeat("b", i%5) + "\n")
	}
	testenv.Contains(t, testenv.Must(unifiedDiff(a.String(), b.String()))(t), "too many", "")
}
