// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// running is an Enforcer with an API that is in memory.
type running struct {
	*Enforcer
	api   *fake.Clientset
	board *status.Board
	stop  func()
}

// start runs one over the objects of a world.
func start(t *testing.T, api *fake.Clientset, sandboxes ...Sandbox) *running {
	t.Helper()
	return startWith(t, api, 100*time.Millisecond, "", sandboxes...)
}

// startWith says how often it looks after its table, and where it keeps its rules.
func startWith(t *testing.T, api *fake.Clientset, guard time.Duration, keep string, sandboxes ...Sandbox) *running {
	t.Helper()
	informers := testenv.Must(netinformers.New(netinformers.Options{Client: api, NodeName: "n1", AllNodes: true, Policies: true}))(t)
	board := status.NewBoard(time.Now)
	e := testenv.Must(New(Options{Informers: informers, Part: board.Part("network policies"), StateFile: keep}))(t)
	e.guard, e.admitWait = guard, patience
	e.Restore(sandboxes)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2) // both ends are read
	go func() { done <- informers.Run(ctx) }()
	go func() { done <- e.Run(ctx) }()
	stopped := false
	r := &running{Enforcer: e, api: api, board: board}
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		testenv.Check(t, errors.Join(<-done, <-done))
	}
	t.Cleanup(r.stop)
	return r
}

func (w *world) api() *fake.Clientset {
	api := fake.NewClientset()
	for _, n := range w.Nodes {
		_ = api.Tracker().Add(n)
	}
	for _, n := range w.Namespaces {
		_ = api.Tracker().Add(n)
	}
	for _, p := range w.Pods {
		_ = api.Tracker().Add(p)
	}
	for _, p := range w.Policies {
		_ = api.Tracker().Add(p)
	}
	return api
}

func thereIs(t *testing.T, want bool) {
	t.Helper()
	testenv.Until(t, patience, "the table is there or not", func() bool {
		ok, err := nft.Exists(kernelTable)
		return err == nil && ok == want
	})
}

// TestPodIsClosedBeforeItsFirstPacket has pods come one after the other: each of them is closed when its network
// begins.
func TestPodIsClosedBeforeItsFirstPacket(t *testing.T) {
	w := dozen()
	w.policy(t, "x", "deny", `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
	l := newLab(t, w)
	e := start(t, w.api())
	for _, b := range w.Sandboxes {
		testenv.NoError(t, e.Admit(t.Context(), b))
		// A connection that was admitted is judged, at once.
		r := Desired(l.State, DefaultLimits())
		for _, c := range []connection{
			{b.IPs[0], l.addressOf("y", "p0", 4), corev1.ProtocolTCP, 80}, {l.addressOf("y", "p1", 6), b.IPs[1], corev1.ProtocolTCP, 80},
		} {
			want := l.allowedAt(c, func(ip netip.Addr) bool { return ip == b.IPs[0] || ip == b.IPs[1] })
			if got := l.try(c); want != (got == nil) {
				t.Errorf("%s/%s, first packet %v: %v; allowed: %v (%d rules)", b.Namespace, b.Name, c, got, want, len(r.Ruleset.Chains))
			}
		}
	}
	e.Release(w.Sandboxes[0].ID)
	testenv.Until(t, patience, "the rules of a pod that is gone are gone", func() bool {
		n, err := nft.Count(kernelTable)
		return err == nil && n.Elements["in4"] == 2 && n.Elements["out4"] == 2
	})
}

// TestAdmitWaitsForPodsLabels: Admit waits for a pod that the API does not know yet, and goes by its labels then, not
// by those of one with its name.
func TestAdmitWaitsForPodsLabels(t *testing.T) {
	namespaceTable(t)
	w := newWorld()
	w.namespace("x", nil)
	w.policy(t, "x", "deny", `{podSelector: {matchLabels: {app: a}}}`)
	former := w.pod("x", "p", "n1", 5, nil)
	former.UID = "former"
	e := start(t, w.api())
	b := w.Sandboxes[0]
	done := make(chan error, 1) // read below
	go func() { done <- e.Admit(t.Context(), b) }()
	testenv.Until(t, patience, "the pod is closed while it is not known", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.waiters[b.ID] != nil && e.waiters[b.ID].unknown
	})
	select {
	case err := <-done:
		t.Fatalf("a pod that is not known was admitted: %v", err)
	default:
	}
	pod := former.DeepCopy()
	pod.UID, pod.Labels = "uid-x-p", map[string]string{"app": "a"}
	// The API in memory loses what happens between an informer's list and its watch: say it until it was heard.
	testenv.Eventually(t, patience, "the pod is admitted", func() error {
		pod.ResourceVersion += "1"
		testenv.Must(e.api.CoreV1().Pods("x").Update(t.Context(), pod, metav1.UpdateOptions{}))(t)
		select {
		case err := <-done:
			return err
		default:
			return errors.New("it still waits")
		}
	})
	if n, err := nft.Count(kernelTable); err != nil || n.Elements["in4"] != 1 || n.Elements["out4"] != 0 {
		t.Errorf("admitted with %v, %v", n, err)
	}
}

func TestAdmitTimesOutForUnknownPod(t *testing.T) {
	namespaceTable(t)
	w := newWorld()
	w.namespace("x", nil)
	w.policy(t, "x", "deny", `{podSelector: {}}`)
	e := start(t, w.api())
	e.admitWait = 50 * time.Millisecond // whenever that is: nothing comes
	err := e.Admit(t.Context(), Sandbox{ID: "a", Namespace: "x", Name: "unheard-of", UID: "u", IPs: []netip.Addr{netip.MustParseAddr("10.42.1.9")}})
	testenv.WantError(t, err, "try again later")
	// A namespace without policies has nothing to wait for.
	e.admitWait = patience
	testenv.Check(t,
		e.Admit(t.Context(), Sandbox{ID: "b", Namespace: "y", Name: "free", UID: "u", IPs: []netip.Addr{netip.MustParseAddr("10.42.1.10")}}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	testenv.ErrorIs(t, e.Admit(ctx, Sandbox{ID: "c", Namespace: "x", Name: "gone", UID: "u"}), context.Canceled, "a runtime that gave up")
}

// TestNoTableExistsWithoutPolicies looks for a table where there is no need of one, and for one that is left from
// before.
func TestNoTableExistsWithoutPolicies(t *testing.T) {
	namespaceTable(t)
	w := dozen()
	old := Desired(func() State { s := *w; s.policy(t, "x", "p", `{podSelector: {}}`); return s.State }(), DefaultLimits())
	testenv.NoError(t, new(table).apply(t.Context(), old.Ruleset))
	w.Policies = nil
	e := start(t, w.api(), w.Sandboxes...)
	thereIs(t, false)
	for _, action := range e.api.Actions() {
		testenv.True(t, action.GetResource().Resource != "pods", "without policies the node does not need %v", action)
	}
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "deny"}}
	policy.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	testenv.Must(e.api.NetworkingV1().NetworkPolicies("x").Create(t.Context(), policy, metav1.CreateOptions{}))(t)
	testenv.Until(t, patience, "the first policy makes the table", func() bool {
		policy.ResourceVersion += "1" // as above
		testenv.Must(e.api.NetworkingV1().NetworkPolicies("x").Update(t.Context(), policy, metav1.UpdateOptions{}))(t)
		ok, err := nft.Exists(kernelTable)
		return err == nil && ok
	})
	testenv.NoError(t, e.api.NetworkingV1().NetworkPolicies("x").Delete(t.Context(), "deny", metav1.DeleteOptions{}))
	thereIs(t, false)
}

// TestRulesStayAcrossRestartAndAreRepaired stops an Enforcer, and starts another one: the rules stay all the time, and
// are mended when another program removes them.
func TestRulesStayAcrossRestartAndAreRepaired(t *testing.T) {
	w := dozen()
	w.policy(t, "x", "deny", `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
	l := newLab(t, w)
	api := w.api()
	e := start(t, api, w.Sandboxes...)
	thereIs(t, true)
	closed := func(when string) {
		t.Helper()
		testenv.ErrorIs(t, l.try(connection{l.addressOf("y", "p0", 4), l.addressOf("x", "p0", 4), corev1.ProtocolTCP, 80}), errRefused, "%s", when)
	}
	closed("running")
	e.stop()
	closed("stopped")
	e = start(t, api, w.Sandboxes...)
	closed("started again")
	testenv.Until(t, patience, "the second one knows the table", func() bool {
		for _, p := range e.board.Components() {
			return p.State == status.Running
		}
		return false
	})
	closed("working again")
	testenv.NoError(t, run(t.Context(), []byte("flush ruleset")))
	thereIs(t, true)
	closed("mended")
}

// TestDeletedTableComesBackAtOnce: it does not wait for the next poll when another program deletes all tables, at any
// time.
func TestDeletedTableComesBackAtOnce(t *testing.T) {
	namespaceTable(t)
	w := dozen()
	w.policy(t, "x", "deny", `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
	startWith(t, w.api(), time.Hour, "", w.Sandboxes...)
	for range 5 {
		thereIs(t, true)
		testenv.NoError(t, run(t.Context(), []byte("flush ruleset")))
	}
	thereIs(t, true)
}

// TestDeletedTableIsRestoredWithoutServer: another program deletes the table while no Enforcer runs, and the next one
// has no server to ask.
func TestDeletedTableIsRestoredWithoutServer(t *testing.T) {
	namespaceTable(t)
	w := dozen()
	w.policy(t, "x", "deny", `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
	file := filepath.Join(t.TempDir(), "rules")
	e := startWith(t, w.api(), time.Hour, file, w.Sandboxes...)
	thereIs(t, true)
	testenv.Until(t, patience, "it knows what it wrote", func() bool {
		for _, p := range e.board.Components() {
			return p.State == status.Running
		}
		return false
	})
	e.stop()
	want := testenv.Must(nft.Count(kernelTable))(t)
	silent := w.api()
	silent.PrependReactor("list", "networkpolicies", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("no server answers")
	})
	for range 2 { // and one more time
		testenv.NoError(t, run(t.Context(), []byte("flush ruleset")))
		e = startWith(t, silent, time.Hour, file, w.Sandboxes...)
		thereIs(t, true)
		if got, err := nft.Count(kernelTable); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("there is %v, %v; before it was %v", got, err, want)
		}
		e.stop()
	}
	e = startWith(t, w.api(), time.Hour, file, w.Sandboxes...)
	testenv.Until(t, patience, "newer rules take their place", func() bool {
		_, err := os.Stat(file)
		return errors.Is(err, fs.ErrNotExist)
	})
	w.Policies = nil
	e.stop()
	e = startWith(t, w.api(), time.Hour, file)
	thereIs(t, false)
	testenv.Until(t, patience, "it knows that there is none", func() bool { return e.table.absent.Load() })
	e.stop()
	testenv.ErrorIs(t, testenv.Err(os.Stat(file)), fs.ErrNotExist, "without rules something is kept")
}

// namespaceTable is for tests that write the table and send no packets.
func namespaceTable(t *testing.T) {
	netns.RequireNFT(t)
	t.Cleanup(func() { testenv.Check(t, Remove()) })
}
