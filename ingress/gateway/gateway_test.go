// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// worlds are the objects of testdata, by the names of the files.
func worlds(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	testenv.Require(t, err == nil && len(files) != 0, "no testdata: %v", err)
	out := map[string]string{}
	for _, f := range files {
		text := testenv.Must(os.ReadFile(f))(t)
		out[strings.TrimSuffix(f, ".yaml")] = string(text)
	}
	return out
}

// TestDesiredFollowsObjects compares what follows from the objects of testdata/NAME.yaml with testdata/NAME.txt.
func TestDesiredFollowsObjects(t *testing.T) {
	for name, objects := range worlds(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			got := summary(t, load(t, objects).settle(t))
			if os.Getenv("WRITE_TESTDATA") != "" {
				testenv.NoError(t, os.WriteFile(name+".txt", []byte(got), 0o600))
			}
			want := testenv.Must(os.ReadFile(name + ".txt"))(t)
			if got != string(want) {
				t.Errorf("%s follows from the objects, and not what %s.txt says; the first line that differs is\n%s", name, name, firstDifference(got, string(want)))
			}
		})
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			return fmt.Sprintf("%d: %q", i+1, g[i])
		}
	}
	return fmt.Sprintf("%d: nothing", len(g)+1)
}

func TestOrderOfInputChangesNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for name, objects := range worlds(t) {
		w := load(t, objects)
		w.settle(t)
		r, err := Desired(w.State)
		testenv.NoError(t, err)
		want := text(t, r)
		for range 20 {
			shuffle(random, w.Classes)
			shuffle(random, w.Gateways)
			shuffle(random, w.ListenerSets)
			shuffle(random, w.HTTPRoutes)
			shuffle(random, w.GRPCRoutes)
			shuffle(random, w.TLSRoutes)
			shuffle(random, w.Grants)
			shuffle(random, w.Policies)
			shuffle(random, w.Namespaces)
			shuffle(random, w.GatewayServices)
			r, err = Desired(w.State)
			testenv.NoError(t, err)
			if got := text(t, r); got != want {
				t.Fatalf("%s: in another order the result is another; the first line that differs is\n%s", name, firstDifference(got, want))
			}
		}
	}
}

func shuffle[T any](random *rand.Rand, s []T) {
	random.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
}

func TestObjectsAreNotChanged(t *testing.T) {
	for name, objects := range worlds(t) {
		w, same := load(t, objects), load(t, objects)
		w.settle(t)
		same.write(must(t, w.State))
		for i := range w.Gateways {
			testenv.True(t, reflect.DeepEqual(w.Gateways[i].Spec, same.Gateways[i].Spec), "%s: a Gateway's spec is another after compiling", name)
		}
		before := text(t, must(t, w.State))
		testenv.Equal(t, text(t, must(t, w.State)), before, "%s: the second result is another:", name)
	}
}

func must(t testing.TB, s State) Result {
	t.Helper()
	return testenv.Must(Desired(s))(t)
}

const oneRoute = `
kind: Gateway
metadata: {namespace: a, name: g}
spec: {gatewayClassName: coracle, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
kind: Service
metadata: {namespace: a, name: web}
spec: {ports: [{port: 80}]}
---
kind: HTTPRoute
metadata: {namespace: a, name: r}
spec:
  parentRefs: [{name: g}, {name: theirs}, {group: "", kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
`

func TestEntriesOfOtherControllersStay(t *testing.T) {
	w := load(t, oneRoute)
	foreignStatus := gatewayv1.RouteParentStatus{ParentRef: gatewayv1.ParentReference{Name: "theirs"}, ControllerName: "other.example/gateway", Conditions: []metav1.Condition{{Type: "Accepted"}}}
	stale := gatewayv1.RouteParentStatus{ParentRef: gatewayv1.ParentReference{Name: "gone"}, ControllerName: ControllerName}
	w.HTTPRoutes[0].Status.Parents = []gatewayv1.RouteParentStatus{stale, foreignStatus}
	got := must(t, w.State).HTTPRouteStatus[nameOf(w.HTTPRoutes[0])].Parents
	if len(got) != 2 || !reflect.DeepEqual(got[0], foreignStatus) || got[1].ParentRef.Name != "g" || got[1].ControllerName != ControllerName {
		t.Errorf("the parents are %+v; want the other controller's as it was, and our own of the Gateway that exists", got)
	}
	w.Gateways = nil
	got = must(t, w.State).HTTPRouteStatus[nameOf(w.HTTPRoutes[0])].Parents
	testenv.True(t, reflect.DeepEqual(got, []gatewayv1.RouteParentStatus{foreignStatus}), "without the Gateway the parents are %+v; want the other controller's alone", got)
	w.HTTPRoutes[0].Status.Parents = got
	if r := must(t, w.State); len(r.HTTPRouteStatus) != 0 {
		t.Errorf("a route that does not concern this controller has the status %+v", r.HTTPRouteStatus)
	}
}

func TestTransitionTimeChangesWithTheStatusAlone(t *testing.T) {
	w := load(t, oneRoute)
	w.settle(t)
	accepted := func() metav1.Condition {
		for _, c := range must(t, w.State).HTTPRouteStatus[types.NamespacedName{Namespace: "a", Name: "r"}].Parents[0].Conditions {
			if c.Type == "Accepted" {
				return c
			}
		}
		t.Fatal("no condition Accepted")
		return metav1.Condition{}
	}
	before := accepted()
	w.Now = w.Now.Add(time.Hour)
	w.HTTPRoutes[0].Generation++
	if got := accepted(); !got.LastTransitionTime.Equal(&before.LastTransitionTime) || got.ObservedGeneration != before.ObservedGeneration+1 {
		t.Errorf("after a change of the spec the condition is %+v; want the time of %+v and the new generation", got, before)
	}
	w.HTTPRoutes[0].Spec.Hostnames = []gatewayv1.Hostname{"h.example"}
	w.Gateways[0].Spec.Listeners[0].Hostname = new(gatewayv1.Hostname("other.example"))
	if got := accepted(); got.Status != metav1.ConditionFalse || !got.LastTransitionTime.Time.Equal(w.Now) {
		t.Errorf("after its status has changed the condition is %+v; want False, and the time %v", got, w.Now)
	}
}

func TestConditionsThatHoldNoMoreGo(t *testing.T) {
	w := load(t, worlds(t)["testdata/clients"])
	w.settle(t)
	has := func(o *gatewayv1.Gateway, kind string) bool {
		return slices.ContainsFunc(must(t, w.State).GatewayStatus[nameOf(o)].Conditions, func(c metav1.Condition) bool { return c.Type == kind })
	}
	const insecure = string(gatewayv1.GatewayConditionInsecureFrontendValidationMode)
	testenv.Require(t, has(w.Gateways[0], insecure), "the Gateway has no condition %s", insecure)
	w.Gateways[0].Status.Conditions = append(w.Gateways[0].Status.Conditions, metav1.Condition{Type: "other.example/Own", Status: metav1.ConditionTrue})
	w.Gateways[0].Spec.TLS = nil
	testenv.False(t, has(w.Gateways[0], insecure), "the condition %s stays without a cause", insecure)
	testenv.True(t, has(w.Gateways[0], "other.example/Own"), "a condition of another controller is gone")
}

func TestGatewayWithoutItsAddressIsNotProgrammed(t *testing.T) {
	w := load(t, oneRoute)
	w.Gateways[0].Spec.Addresses = []gatewayv1.GatewaySpecAddress{{Value: "192.0.2.9"}}
	w.settle(t)
	programmed := func() metav1.Condition {
		for _, c := range must(t, w.State).GatewayStatus[nameOf(w.Gateways[0])].Conditions {
			if c.Type == "Programmed" {
				return c
			}
		}
		t.Fatal("no condition Programmed")
		return metav1.Condition{}
	}
	testenv.Equal(t, programmed().Status, metav1.ConditionTrue, "with its address the Gateway is")
	w.GatewayServices[0].Status.LoadBalancer.Ingress[0].IP = "192.0.2.1"
	if got := programmed(); got.Reason != string(gatewayv1.GatewayReasonAddressNotUsable) {
		t.Errorf("with another address than that which it asks for, the Gateway is %+v", got)
	}
	w.Gateways[0].Spec.Addresses = nil
	w.GatewayServices[0].Status.LoadBalancer.Ingress = nil
	testenv.Equal(t, programmed().Reason, string(gatewayv1.GatewayReasonAddressNotAssigned), "without an address the Gateway is")
	w.NodePorts = nil
	r := must(t, w.State)
	if got := r.GatewayStatus[nameOf(w.Gateways[0])].Listeners[0].Conditions[1]; got.Reason != string(gatewayv1.ListenerReasonPending) {
		t.Errorf("without a port of nodes the listener is %+v", got)
	}
	testenv.False(t, len(r.Sections) != 0, "without a port of nodes the table has %v", r.Sections)
}

func TestClassStatusNamesVersionAndFeatures(t *testing.T) {
	w := load(t, oneRoute)
	w.CRDVersion = "v1.6.1"
	condition := func() metav1.Condition {
		status := must(t, w.State).ClassStatus[ClassName]
		for _, c := range status.Conditions {
			if c.Type == string(gatewayv1.GatewayClassConditionStatusSupportedVersion) {
				return c
			}
		}
		t.Fatalf("no condition SupportedVersion in %+v", status)
		return metav1.Condition{}
	}
	testenv.Equal(t, condition().Status, metav1.ConditionTrue, "CRDs %s:", w.CRDVersion)
	w.CRDVersion = "v1.7.0"
	if got := condition(); got.Status != metav1.ConditionFalse || got.Reason != string(gatewayv1.GatewayClassReasonUnsupportedVersion) {
		t.Errorf("CRDs %s: %+v", w.CRDVersion, got)
	}
	got := must(t, w.State).ClassStatus[ClassName].SupportedFeatures
	known := features.SetsToNamesSet(features.AllFeatures)
	for i, f := range got {
		if i > 0 && got[i-1].Name >= f.Name {
			t.Errorf("the feature %s stands behind %s", f.Name, got[i-1].Name)
		}
		testenv.True(t, known.Has(features.FeatureName(f.Name)), "the API knows no feature %s", f.Name)
	}
}

// FuzzDesired: no object panics the compiler, whatever it holds, and the order of objects changes nothing.
func FuzzDesired(f *testing.F) {
	all := worlds(f)
	var states []State
	for _, name := range slices.Sorted(maps.Keys(all)) {
		w := load(f, all[name])
		w.settle(f)
		states = append(states, w.State)
		for _, o := range w.Gateways {
			f.Add(asJSON(f, o), "Gateway", 0)
		}
		for _, o := range w.ListenerSets {
			f.Add(asJSON(f, o), "ListenerSet", 1)
		}
		for _, o := range w.HTTPRoutes {
			f.Add(asJSON(f, o), "HTTPRoute", 2)
		}
		for _, o := range w.GRPCRoutes {
			f.Add(asJSON(f, o), "GRPCRoute", 3)
		}
		for _, o := range w.TLSRoutes {
			f.Add(asJSON(f, o), "TLSRoute", 4)
		}
		for _, o := range w.Policies {
			f.Add(asJSON(f, o), "BackendTLSPolicy", 5)
		}
		for _, o := range w.Grants {
			f.Add(asJSON(f, o), "ReferenceGrant", 6)
		}
	}
	f.Fuzz(func(t *testing.T, object []byte, kind string, at int) {
		s := states[(at%len(states)+len(states))%len(states)]
		var err error
		switch kind {
		case "Gateway":
			s.Gateways, err = with(s.Gateways, object)
		case "ListenerSet":
			s.ListenerSets, err = with(s.ListenerSets, object)
		case "HTTPRoute":
			s.HTTPRoutes, err = with(s.HTTPRoutes, object)
		case "GRPCRoute":
			s.GRPCRoutes, err = with(s.GRPCRoutes, object)
		case "TLSRoute":
			s.TLSRoutes, err = with(s.TLSRoutes, object)
		case "BackendTLSPolicy":
			s.Policies, err = with(s.Policies, object)
		case "ReferenceGrant":
			s.Grants, err = with(s.Grants, object)
		default:
			return
		}
		if err != nil {
			return
		}
		r := testenv.Must(Desired(s))(t)
		for _, reverse := range []func(){
			func() { s.Gateways = reversed(s.Gateways) }, func() { s.ListenerSets = reversed(s.ListenerSets) }, func() { s.HTTPRoutes = reversed(s.HTTPRoutes) },
			func() { s.GRPCRoutes = reversed(s.GRPCRoutes) }, func() { s.TLSRoutes = reversed(s.TLSRoutes) }, func() { s.Policies = reversed(s.Policies) },
		} {
			reverse()
		}
		again := testenv.Must(Desired(s))(t)
		if one, other := text(t, r), text(t, again); one != other {
			t.Errorf("in another order the result is\n%s\nand not\n%s", other, one)
		}
	})
}

func reversed[T any](in []T) []T {
	out := slices.Clone(in)
	slices.Reverse(out)
	return out
}

func asJSON(t testing.TB, o any) []byte {
	t.Helper()
	return testenv.Must(json.Marshal(o))(t)
}

// with adds an object, in the place of the one of its name.
func with[T any, P interface {
	*T
	metav1.Object
}](list []P, text []byte) ([]P, error) {
	o := P(new(T))
	if err := json.Unmarshal(text, o); err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(slices.Clone(list), func(other P) bool { return nameOf(other) == nameOf(o) })
	return append(list, o), nil
}
