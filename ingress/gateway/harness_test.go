// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// born is when the first object of a world was made; each later one in its file is a second younger, unless it says
// when.
var born = time.Unix(1_800_000_000, 0).UTC()

// world is a State that is read from YAML.
type world struct {
	State
	services   map[types.NamespacedName]*corev1.Service
	secrets    map[types.NamespacedName]*corev1.Secret
	configMaps map[types.NamespacedName]*corev1.ConfigMap
}

// load reads objects of several kinds. The value "made" in a Secret stands for a certificate for the names in
// tls.names, and in a ConfigMap for an authority.
func load(t testing.TB, text string) *world {
	t.Helper()
	w := &world{
		services: map[types.NamespacedName]*corev1.Service{}, secrets: map[types.NamespacedName]*corev1.Secret{}, configMaps: map[types.NamespacedName]*corev1.ConfigMap{},
	}
	w.State = State{
		Classes: []*gatewayv1.GatewayClass{{ObjectMeta: metav1.ObjectMeta{Name: ClassName, Generation: 1}, Spec: gatewayv1.GatewayClassSpec{ControllerName: ControllerName}}},
		Service: func(n types.NamespacedName) *corev1.Service { return w.services[n] },
		Secret:  func(n types.NamespacedName) *corev1.Secret { return w.secrets[n] },
		ConfigMap: func(n types.NamespacedName) *corev1.ConfigMap {
			return w.configMaps[n]
		},
		Now: born.Add(time.Hour),
	}
	for i, document := range strings.Split(text, "\n---\n") {
		var kind metav1.TypeMeta
		testenv.NoError(t, yaml.Unmarshal([]byte(document), &kind))
		w.read(t, kind.Kind, []byte(document), metav1.NewTime(born.Add(time.Duration(i)*time.Second)))
	}
	return w
}

func (w *world) read(t testing.TB, kind string, document []byte, at metav1.Time) {
	t.Helper()
	switch kind {
	case "":
	case "GatewayClass":
		w.Classes = append(w.Classes, object(t, document, at, &gatewayv1.GatewayClass{}))
	case "Gateway":
		w.Gateways = append(w.Gateways, object(t, document, at, &gatewayv1.Gateway{}))
	case "ListenerSet":
		w.ListenerSets = append(w.ListenerSets, object(t, document, at, &gatewayv1.ListenerSet{}))
	case "HTTPRoute":
		w.HTTPRoutes = append(w.HTTPRoutes, object(t, document, at, &gatewayv1.HTTPRoute{}))
	case "GRPCRoute":
		w.GRPCRoutes = append(w.GRPCRoutes, object(t, document, at, &gatewayv1.GRPCRoute{}))
	case "TLSRoute":
		w.TLSRoutes = append(w.TLSRoutes, object(t, document, at, &gatewayv1.TLSRoute{}))
	case "ReferenceGrant":
		w.Grants = append(w.Grants, object(t, document, at, &gatewayv1.ReferenceGrant{}))
	case "BackendTLSPolicy":
		w.Policies = append(w.Policies, object(t, document, at, &gatewayv1.BackendTLSPolicy{}))
	case "Namespace":
		n := object(t, document, at, &corev1.Namespace{})
		metav1.SetMetaDataLabel(&n.ObjectMeta, corev1.LabelMetadataName, n.Name)
		w.Namespaces = append(w.Namespaces, n)
	case "Service":
		s := object(t, document, at, &corev1.Service{})
		w.services[nameOf(s)] = s
	case "Secret":
		s := object(t, document, at, &corev1.Secret{})
		if names, ok := s.StringData["tls.names"]; ok {
			chain, key := issued(t, strings.Fields(names)...)
			s.Data = map[string][]byte{corev1.TLSCertKey: chain, corev1.TLSPrivateKeyKey: key}
		}
		if s.StringData[caKey] == "made" {
			chain, _ := issued(t, s.Name)
			s.Data = map[string][]byte{caKey: chain}
		}
		w.secrets[nameOf(s)] = s
	case "ConfigMap":
		m := object(t, document, at, &corev1.ConfigMap{})
		if m.Data[caKey] == "made" {
			chain, _ := issued(t, m.Name)
			m.Data[caKey] = string(chain)
		}
		w.configMaps[nameOf(m)] = m
	default:
		t.Fatalf("an object of the kind %q", kind)
	}
}

func object[T metav1.Object](t testing.TB, document []byte, at metav1.Time, out T) T {
	t.Helper()
	testenv.NoError(t, yaml.UnmarshalStrict(document, out))
	if made := out.GetCreationTimestamp(); made.IsZero() {
		out.SetCreationTimestamp(at)
	}
	out.SetGeneration(cmp.Or(out.GetGeneration(), 1))
	return out
}

// issued makes a certificate with its key.
func issued(t testing.TB, names ...string) (chain, key []byte) {
	t.Helper()
	ca := testenv.Must(testca.New(t.TempDir()))(t)
	files, err := ca.Issue("made", names...)
	testenv.NoError(t, err)
	if chain, err = os.ReadFile(files.Cert); err == nil {
		key, err = os.ReadFile(files.Key)
	}
	testenv.NoError(t, err)
	return chain, key
}

// settle compiles the world until its Services and statuses are as wanted, as the leader writes them.
func (w *world) settle(t testing.TB) Result {
	t.Helper()
	r, err := Desired(w.State)
	testenv.NoError(t, err)
	w.GatewayServices, w.NodePorts = nil, map[string]uint16{}
	node := uint16(table.FirstGatewayPort)
	for _, name := range slices.SortedFunc(maps.Keys(r.Services), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) }) {
		want := r.Services[name]
		for _, p := range want.Ports {
			w.NodePorts[Site(name.Namespace, want.Gateway.Name, p)] = node
			node++
		}
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
			Namespace: name.Namespace, Name: name.Name, Labels: map[string]string{ServiceLabel: LabelValue(want.Gateway.Name)},
		}}
		for _, a := range want.Addresses {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
		if len(want.Addresses) == 0 {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
		}
		w.GatewayServices = append(w.GatewayServices, s)
	}
	for range 2 { // entries that are stale go with the first
		r, err = Desired(w.State)
		testenv.NoError(t, err)
		w.write(r)
	}
	again := w.State
	again.Now = again.Now.Add(time.Hour)
	settled := testenv.Must(Desired(again))(t)
	if before, after := text(t, r), text(t, settled); before != after {
		t.Errorf("with its own status written, the result is another:\n%s\nand not\n%s", after, before)
	}
	return r
}

// write writes the wanted statuses.
func (w *world) write(r Result) {
	for _, o := range w.Classes {
		o.Status = r.ClassStatus[o.Name]
	}
	setStatus(w.Gateways, r.GatewayStatus, func(o *gatewayv1.Gateway) *gatewayv1.GatewayStatus { return &o.Status })
	setStatus(w.ListenerSets, r.ListenerSetStatus, func(o *gatewayv1.ListenerSet) *gatewayv1.ListenerSetStatus { return &o.Status })
	setStatus(w.HTTPRoutes, r.HTTPRouteStatus, func(o *gatewayv1.HTTPRoute) *gatewayv1.HTTPRouteStatus { return &o.Status })
	setStatus(w.GRPCRoutes, r.GRPCRouteStatus, func(o *gatewayv1.GRPCRoute) *gatewayv1.GRPCRouteStatus { return &o.Status })
	setStatus(w.TLSRoutes, r.TLSRouteStatus, func(o *gatewayv1.TLSRoute) *gatewayv1.TLSRouteStatus { return &o.Status })
	setStatus(w.Policies, r.PolicyStatus, func(o *gatewayv1.BackendTLSPolicy) *gatewayv1.PolicyStatus { return &o.Status })
}

func setStatus[T metav1.Object, S any](objects []T, wanted map[types.NamespacedName]S, of func(T) *S) {
	for _, o := range objects {
		if s, ok := wanted[nameOf(o)]; ok {
			*of(o) = s
		}
	}
}

// text is the whole of a result, for comparisons.
func text(t testing.TB, r Result) string {
	t.Helper()
	var out bytes.Buffer
	for _, part := range []any{
		r.Sections, r.ClassStatus, named(r.GatewayStatus), named(r.ListenerSetStatus), named(r.HTTPRouteStatus), named(r.GRPCRouteStatus), named(r.TLSRouteStatus),
		named(r.PolicyStatus), named(r.Secrets), named(r.ConfigMaps),
	} {
		encoded := testenv.Must(json.MarshalIndent(part, "", " "))(t)
		out.Write(encoded)
	}
	for _, name := range slices.Sorted(maps.Keys(named(r.Services))) {
		s := named(r.Services)[name]
		fmt.Fprintf(&out, "%s %s %v %v %v %v\n", name, s.Gateway.Name, s.Ports, s.Addresses, s.Labels, s.Annotations)
	}
	return out.String()
}

func named[T any](in map[types.NamespacedName]T) map[string]T {
	out := map[string]T{}
	for k, v := range in {
		out[k.String()] = v
	}
	return out
}

// summary is what a result says, in lines.
func summary(t testing.TB, r Result) string {
	t.Helper()
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(named(r.GatewayStatus))) {
		s := named(r.GatewayStatus)[name]
		fmt.Fprintf(&out, "Gateway %s:%s\n", name, brief(s.Conditions))
		for _, a := range s.Addresses {
			fmt.Fprintf(&out, "  address %s %s\n", *a.Type, a.Value)
		}
		if n := *s.AttachedListenerSets; n > 0 {
			fmt.Fprintf(&out, "  %d ListenerSets\n", n)
		}
		for _, l := range s.Listeners {
			fmt.Fprintf(&out, "  %s %v %d:%s\n", l.Name, kindsOf(l.SupportedKinds), l.AttachedRoutes, brief(l.Conditions))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(named(r.ListenerSetStatus))) {
		s := named(r.ListenerSetStatus)[name]
		fmt.Fprintf(&out, "ListenerSet %s:%s\n", name, brief(s.Conditions))
		for _, l := range s.Listeners {
			fmt.Fprintf(&out, "  %s %v %d:%s\n", l.Name, kindsOf(l.SupportedKinds), l.AttachedRoutes, brief(l.Conditions))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(named(r.HTTPRouteStatus))) {
		parents(&out, "HTTPRoute "+name, named(r.HTTPRouteStatus)[name].Parents)
	}
	for _, name := range slices.Sorted(maps.Keys(named(r.GRPCRouteStatus))) {
		parents(&out, "GRPCRoute "+name, named(r.GRPCRouteStatus)[name].Parents)
	}
	for _, name := range slices.Sorted(maps.Keys(named(r.TLSRouteStatus))) {
		parents(&out, "TLSRoute "+name, named(r.TLSRouteStatus)[name].Parents)
	}
	for _, name := range slices.Sorted(maps.Keys(named(r.PolicyStatus))) {
		for _, a := range named(r.PolicyStatus)[name].Ancestors {
			fmt.Fprintf(&out, "BackendTLSPolicy %s for %s by %s:%s\n", name, a.AncestorRef.Name, a.ControllerName, brief(a.Conditions))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(named(r.Services))) {
		s := named(r.Services)[name]
		fmt.Fprintf(&out, "Service %s: ports %v\n", name, s.Ports)
	}
	sections(t, &out, r.Sections)
	return out.String()
}

func parents(out *strings.Builder, route string, list []gatewayv1.RouteParentStatus) {
	fmt.Fprintf(out, "%s:\n", route)
	for _, p := range list {
		fmt.Fprintf(out, "  %s %s %s by %s:%s\n", ptr.Deref(p.ParentRef.Kind, "Gateway"), p.ParentRef.Name, ptr.Deref(p.ParentRef.SectionName, "*"), p.ControllerName, brief(p.Conditions))
	}
}

func kindsOf(kinds []gatewayv1.RouteGroupKind) (out []gatewayv1.Kind) {
	for _, k := range kinds {
		out = append(out, k.Kind)
	}
	return out
}

// brief leaves out what is as it should be.
func brief(conditions []metav1.Condition) string {
	out := ""
	for _, c := range conditions {
		usual := c.Status == metav1.ConditionTrue && c.Reason == c.Type || c.Status == metav1.ConditionFalse && c.Type == "Conflicted"
		switch {
		case !usual && c.Status == metav1.ConditionTrue:
			out += " " + c.Type + "/" + c.Reason
		case !usual:
			out += " not " + c.Type + "/" + c.Reason
		}
	}
	return cmp.Or(out, " good")
}

// sections are those of a table, without what certificates hold.
func sections(t testing.TB, out *strings.Builder, all table.Sections) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(all)) {
		var h table.Host
		switch table.Kind(key) {
		case table.KindHost:
			testenv.NoError(t, json.Unmarshal(all[key], &h))
			fmt.Fprintf(out, "%s", key)
			if h.Certificate != "" {
				fmt.Fprintf(out, " %s", h.Certificate)
			}
			testenv.True(t, h.Final && h.AnyDepth == strings.Contains(key, "/*."),
				"the host %s is not final, or its wildcard not deep", key)
			fmt.Fprintln(out)
			if h.Stream != nil {
				fmt.Fprintf(out, "  stream %s\n", encoded(t, h.Stream))
			}
			for _, r := range h.Routes {
				fmt.Fprintf(out, "  %s %s", r.Kind, r.Path)
				if r.Method != "" {
					fmt.Fprintf(out, " %s", r.Method)
				}
				for _, c := range slices.Concat(r.Headers, r.Query) {
					fmt.Fprintf(out, " %s=%s", c.Name, c.Value)
					if c.Regex {
						fmt.Fprint(out, "~")
					}
				}
				fmt.Fprintf(out, " (%s)", r.Object)
				for _, b := range r.Backends {
					fmt.Fprintf(out, " %s", backendText(t, b))
				}
				if r.Policy != nil {
					fmt.Fprintf(out, " %s", encoded(t, r.Policy))
				}
				fmt.Fprintln(out)
			}
		case table.KindSite:
			fmt.Fprintf(out, "%s %s\n", key, all[key])
		default:
			fmt.Fprintln(out, key)
		}
	}
}

func backendText(t testing.TB, b table.Backend) string {
	if b.Invalid != "" {
		return fmt.Sprintf("[%d invalid: %s]", b.Weight, b.Invalid)
	}
	out := fmt.Sprintf("%s/%s:%s", b.Namespace, b.Service, b.Port)
	if b.Weight != 1 {
		out += fmt.Sprintf("*%d", b.Weight)
	}
	if b.Protocol != "" {
		out += "," + b.Protocol
	}
	if b.TLS != nil {
		out += encoded(t, b.TLS)
	}
	if b.RequestHeaders != nil || b.ResponseHeaders != nil {
		out += encoded(t, []any{b.RequestHeaders, b.ResponseHeaders})
	}
	return out
}

func encoded(t testing.TB, v any) string {
	t.Helper()
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	testenv.NoError(t, e.Encode(v))
	return strings.TrimSpace(out.String())
}
