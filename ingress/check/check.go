// SPDX-License-Identifier: Apache-2.0

// Package check says what of a cluster's Ingresses, or of those in files, the ingress would refuse, ignore or serve in
// another way than ingress-nginx. It is a dry run for who moves to coracle, so it may read a foreign cluster.
//
// The judgement is compile's: Run gathers the objects, takes the classes of other controllers as served here, and lists
// the findings. It writes nothing, and asks for no right that it can do without.
package check

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/ingress/compile"
)

// Options are the input of Run. Client, Objects or both are required.
type Options struct {
	// Client reads the cluster. nil reads none.
	Client kubernetes.Interface
	// Namespace limits what is read of the cluster; empty for all namespaces.
	Namespace string
	// Objects are judged as if they were applied to the cluster.
	Objects *Objects
	// Defaults is the ConfigMap whose keys count as those of compile.Defaults, such as ingress-nginx's own; its name is
	// empty for compile.Defaults.
	Defaults types.NamespacedName
	// Rules are the settings of the servers.
	Rules compile.Rules
	// Now is the time at which certificates are judged, and Objects without a creation timestamp are created.
	Now time.Time
}

// Report is the result of Run. Its form as JSON is documented in docs/ingress-nginx.md and is only extended.
type Report struct {
	// Ingresses is the number of Ingresses that were checked. Others is the number of those of classes that neither
	// coracle nor one of the controllers that it replaces serves.
	Ingresses int `json:"ingresses"`
	Others    int `json:"others"`
	// Refused, Broken, Different and Ignored are the numbers of findings of each effect.
	Refused   int `json:"refused"`
	Broken    int `json:"broken"`
	Different int `json:"different"`
	Ignored   int `json:"ignored"`
	// Findings are ordered by kind, namespace, name, and effect.
	Findings []Finding `json:"findings"`
	// Notes are sentences about what could not be checked, or what applies to the whole cluster.
	Notes []string `json:"notes"`
}

// Finding is a finding about one object.
type Finding struct {
	Kind      string         `json:"kind"` // Ingress or ConfigMap
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Effect    compile.Effect `json:"effect"`
	Reason    string         `json:"reason"`
	Field     string         `json:"field"`
	Message   string         `json:"message"`
}

// effectOrder is the order of effects in a Report.
var effectOrder = []compile.Effect{compile.EffectRefused, compile.EffectBroken, compile.EffectDifferent, compile.EffectIgnored}

// foreignControllers are those whose Ingresses coracle can take over.
var foreignControllers = []string{"k8s.io/ingress-nginx", "traefik.io/ingress-controller"}

// Run reads the objects and checks them. It returns an error if it could check none.
func Run(ctx context.Context, o Options) (Report, error) {
	g := &gatherer{o: o, r: Report{Findings: []Finding{}, Notes: []string{}}, files: cmp.Or(o.Objects, NewObjects())}
	if o.Defaults.Name == "" {
		g.o.Defaults = compile.Defaults
	}
	if err := g.read(ctx); err != nil {
		return Report{}, err
	}
	g.adopt()
	if err := g.readNamed(ctx); err != nil {
		return Report{}, err
	}
	r, err := compile.Desired(g.state)
	if err != nil {
		return Report{}, fmt.Errorf("judging the Ingresses: %w", err)
	}
	g.report(r)
	return g.r, nil
}

// adopt takes the classes of other controllers as served by coracle. It gives Ingresses of files that name no class the
// cluster's default class, as the API server does when they are created.
func (g *gatherer) adopt() {
	unnamed := compile.Class
	for i, class := range g.state.Classes {
		if class.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
			unnamed = class.Name
		}
		if !slices.Contains(foreignControllers, class.Spec.Controller) || class.Annotations[compile.AdoptedAnnotation] == "true" {
			continue
		}
		own := class.DeepCopy()
		metav1.SetMetaDataAnnotation(&own.ObjectMeta, compile.AdoptedAnnotation, "true")
		g.state.Classes[i] = own
		g.addNote("the IngressClass %s belongs to %s: its Ingresses are served by coracle when it is deleted, or has the annotation %s: \"true\"",
			class.Name, class.Spec.Controller, compile.AdoptedAnnotation)
	}
	for i, ing := range g.state.Ingresses {
		if g.files.ingresses[nameOf(ing)] != nil && compile.ClassOf(ing) == "" {
			own := ing.DeepCopy()
			own.Spec.IngressClassName = &unnamed
			g.state.Ingresses[i] = own
		}
	}
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// addNote adds a sentence to the report, once.
func (g *gatherer) addNote(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(g.r.Notes, text) {
		g.r.Notes = append(g.r.Notes, text)
	}
}

// report lists the findings of all objects.
func (g *gatherer) report(r compile.Result) {
	var others []string
	checked := map[types.NamespacedName]bool{}
	for _, ing := range r.Served {
		checked[nameOf(ing)] = true
		for _, f := range slices.Concat(r.Findings[nameOf(ing)], compile.Differences(ing)) {
			g.add("Ingress", nameOf(ing), f)
		}
	}
	g.r.Ingresses = len(checked)
	for _, f := range r.OfDefaults {
		g.add("ConfigMap", g.o.Defaults, f)
	}
	for _, ing := range g.state.Ingresses {
		switch {
		case checked[nameOf(ing)] || ing.DeletionTimestamp != nil:
		case compile.ClassOf(ing) == "":
			g.r.Ingresses++
			g.add("Ingress", nameOf(ing), compile.Finding{Reason: compile.ReasonUnsupported, Field: "spec.ingressClassName",
				Message: "the Ingress names no class, so that coracle does not serve it: set spec.ingressClassName, or create it again in a " +
					"cluster that has a default class"})
		default:
			g.r.Others++
			others = append(others, compile.ClassOf(ing))
		}
	}
	if slices.Sort(others); len(others) > 0 {
		g.addNote("Ingresses of these classes were not checked: %s", strings.Join(slices.Compact(others), ", "))
	}
	slices.SortStableFunc(g.r.Findings, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name),
			cmp.Compare(slices.Index(effectOrder, a.Effect), slices.Index(effectOrder, b.Effect)))
	})
}

func (g *gatherer) add(kind string, of types.NamespacedName, f compile.Finding) {
	effect := f.Effect()
	switch effect {
	case compile.EffectRefused:
		g.r.Refused++
	case compile.EffectBroken:
		g.r.Broken++
	case compile.EffectDifferent:
		g.r.Different++
	case compile.EffectIgnored:
		g.r.Ignored++
	}
	g.r.Findings = append(g.r.Findings, Finding{kind, of.Namespace, of.Name, effect, f.Reason, f.Field, f.Message})
}

// sortedValues returns the values of a map, ordered by name.
func sortedValues[T any](m map[types.NamespacedName]T) []T {
	var out []T
	byName := func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) }
	for _, name := range slices.SortedFunc(maps.Keys(m), byName) {
		out = append(out, m[name])
	}
	return out
}

// secretData returns the data of a Secret of a file, which may have stringData.
func secretData(s *corev1.Secret) map[string][]byte {
	out := maps.Clone(s.Data)
	if out == nil {
		out = map[string][]byte{}
	}
	for key, value := range s.StringData {
		out[key] = []byte(value)
	}
	return out
}
