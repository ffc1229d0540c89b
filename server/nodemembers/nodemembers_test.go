// SPDX-License-Identifier: Apache-2.0

package nodemembers

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// storeMembers stands for the store.
type storeMembers struct {
	names   []string
	removed []string
	refuses error
	alive   string // the member that answers
}

func (s *storeMembers) Members() []raftstore.Member {
	var out []raftstore.Member
	for _, n := range s.names {
		out = append(out, raftstore.Member{Name: n})
	}
	return out
}

func (s *storeMembers) Survey(context.Context) []raftstore.MemberState {
	var out []raftstore.MemberState
	for _, m := range s.Members() {
		out = append(out, raftstore.MemberState{Member: m, Answers: m.Name == s.alive})
	}
	return out
}

func (s *storeMembers) RemoveMember(_ context.Context, name string) error {
	if s.refuses != nil {
		return s.refuses
	}
	s.removed = append(s.removed, name)
	return nil
}

func TestNodesDeletionRemovesItsServer(t *testing.T) {
	refused := status.Error(codes.FailedPrecondition, "raftstore: without it the store would lose its quorum")
	for _, c := range []struct {
		name       string
		members    string
		id         string
		finalizers []string
		alive      bool
		agent      bool // not labelled as a server
		refuses    error
		removed    string // the member that is to be removed
		left       []string
		ok         bool
	}{
		{name: "one of three", members: "s1 s2 s3", id: "s2", finalizers: []string{"other/one", memberFinalizer},
			removed: "s2", left: []string{"other/one"}, ok: true},
		{name: "not deleted", members: "s1 s2 s3", id: "s2", finalizers: []string{memberFinalizer}, alive: true,
			left: []string{memberFinalizer}, ok: true},
		{name: "an agent that names another's server", members: "s1 s2 s3", id: "s2", agent: true,
			finalizers: []string{"other/one", memberFinalizer}, left: []string{"other/one"}, ok: true},
		{name: "without the finalizer", members: "s1 s2 s3", id: "s2", finalizers: []string{"other/one"}, left: []string{"other/one"}, ok: true},
		{name: "the only server", members: "s2", id: "s2", finalizers: []string{"other/one", memberFinalizer},
			left: []string{"other/one"}, ok: true},
		{name: "a member of another cluster", members: "s1 s3", id: "s2",
			finalizers: []string{"other/one", memberFinalizer}, left: []string{"other/one"}, ok: true},
		{name: "without a name", members: "s1 s3", finalizers: []string{"other/one", memberFinalizer}, left: []string{"other/one"}, ok: true},
		{name: "removed meanwhile", members: "s1 s2", id: "s2", finalizers: []string{"other/one", memberFinalizer},
			refuses: status.Error(codes.NotFound, "no member"), left: []string{"other/one"}, ok: true},
		{name: "refused", members: "s1 s2 s3", id: "s2", finalizers: []string{"other/one", memberFinalizer},
			refuses: refused, left: []string{"other/one", memberFinalizer}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2", Finalizers: c.finalizers, Annotations: map[string]string{}}}
			if !c.agent {
				n.Labels = map[string]string{roster.RoleLabel: roster.RoleValue}
			}
			if c.id != "" {
				n.Annotations[clusterconfig.ServerIDAnnotation] = c.id
			}
			if now := metav1.Now(); !c.alive {
				n.DeletionTimestamp = &now
			}
			client := fake.NewClientset(n)
			nodes := informers.NewSharedInformerFactory(client, 0).Core().V1().Nodes()
			testenv.NoError(t, nodes.Informer().GetStore().Add(n))
			store := &storeMembers{names: strings.Fields(c.members), refuses: c.refuses}
			m := &nodeMembers{client: client, nodes: nodes.Lister(), store: store, log: slog.New(slog.DiscardHandler)}
			if ok := m.removeDeleted(t.Context()); ok != c.ok {
				t.Errorf("once says %v", ok)
			}
			testenv.Equal(t, strings.Join(store.removed, " "), c.removed, "removed")
			now := testenv.Must(client.CoreV1().Nodes().Get(t.Context(), "n2", metav1.GetOptions{}))(t)
			testenv.EqualSlices(t, now.Finalizers, c.left, "finalizers")
		})
	}
}

// A machine that was wiped is another server on the same node.
func TestNodeIsMarkedAsAServers(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Finalizers: []string{"other/one"},
		Annotations: map[string]string{clusterconfig.ServerIDAnnotation: "before"}}}
	client := fake.NewClientset(n)
	store := &storeMembers{names: []string{"s1", "before"}}
	r := &Role{client: client, node: "n1", id: "s1", store: store, log: slog.New(slog.DiscardHandler)}
	testenv.False(t, r.complete(n), "nothing to do for a node that says it is another server's")
	testenv.NoError(t, r.writeRole(t.Context(), "before"))
	now := testenv.Must(client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{}))(t)
	if !r.complete(now) || !slices.Contains(now.Finalizers, "other/one") || strings.Join(store.removed, " ") != "before" {
		t.Errorf("the node is %+v, removed %q", now.ObjectMeta, store.removed)
	}
	store.removed, store.alive = nil, "before"
	if err := r.writeRole(t.Context(), "before"); err == nil || len(store.removed) > 0 {
		t.Errorf("a server that lives was taken out because an annotation names it: %v, %q", err, store.removed)
	}
	store.alive = ""
	store.refuses = status.Error(codes.FailedPrecondition, "no majority")
	testenv.Fails(t, r.writeRole(t.Context(), "before"), "the refusal to remove the former server is not reported")
}
