// SPDX-License-Identifier: Apache-2.0

// Package nodemembers connects servers with their nodes. Each server marks its own node as a server's. The leader
// removes a server from the store when its node is deleted. The package never deletes a node.
//
// Its goroutines: an informer of the own Node.
package nodemembers

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/roster"
)

const (
	memberFinalizer = clusterconfig.MemberFinalizer
	// memberRetry is the pause after a refused or failed removal.
	memberRetry = 5 * time.Second
)

// Members are the store's operations on members that this package needs.
type Members interface {
	Members() []raftstore.Member
	Survey(ctx context.Context) []raftstore.MemberState
	RemoveMember(ctx context.Context, name string) error
}

// nodeMembers removes servers whose nodes are deleted from the store: administrators remove a machine by kubectl delete
// node. It runs on the leader.
type nodeMembers struct {
	client kubernetes.Interface
	nodes  listers.NodeLister
	store  Members
	log    *slog.Logger
}

// Run removes servers whose nodes are deleted from the store, for a term of leadership.
func Run(ctx context.Context, t *term.Term, store Members, log *slog.Logger) error {
	nodes := t.Informers.Core().V1().Nodes()
	changed := timers.NewSignal() // sent when nodes have to be checked
	_, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { changed.Send() }, UpdateFunc: func(_, obj any) {
			if n, ok := obj.(*corev1.Node); ok && n.DeletionTimestamp != nil {
				changed.Send()
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watching nodes: %w", err)
	}
	client, err := kubernetes.NewForConfig(t.Config)
	if err != nil {
		return fmt.Errorf("making the client for servers' nodes: %w", err)
	}
	m := &nodeMembers{client: client, nodes: nodes.Lister(), store: store, log: log}
	if !t.StartInformers(ctx) {
		return nil
	}
	changed.Rounds(ctx, 0, func() time.Duration {
		if m.removeDeleted(ctx) {
			return 0
		}
		return memberRetry
	})
	return nil
}

// removeDeleted removes the servers of all nodes that are being deleted. It returns false if one could not be removed.
func (m *nodeMembers) removeDeleted(ctx context.Context) bool {
	nodes, err := m.nodes.List(labels.Everything())
	ok := err == nil
	for _, n := range nodes {
		if n.DeletionTimestamp == nil || !slices.Contains(n.Finalizers, memberFinalizer) {
			continue
		}
		if err := m.remove(ctx, n); err != nil && ctx.Err() == nil {
			ok = false
			m.log.Warn("a node is being deleted, but its server could not be removed from the store; the node stays until that succeeds",
				"node", n.Name, "error", err)
		}
	}
	return ok
}

func (m *nodeMembers) remove(ctx context.Context, n *corev1.Node) error {
	id, all := n.Annotations[clusterconfig.ServerIDAnnotation], m.store.Members()
	// A node may write its own annotations and finalizers, but not this label: so it cannot name another node's server.
	// The only server is not removed, and its node registers again.
	if roster.IsServer(n) && len(all) > 1 && roster.IsMember(all, id) {
		if err := m.store.RemoveMember(ctx, id); err != nil && status.Code(err) != codes.NotFound {
			return err
		}
		m.log.Info("a server was removed from the store with its node", "node", n.Name, "member", id)
	}
	// A strategic merge would not distinguish others' finalizers from ours. With the resource version a concurrent
	// change is a conflict.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": n.ResourceVersion, "uid": n.UID,
		"finalizers": slices.DeleteFunc(slices.Clone(n.Finalizers), func(f string) bool { return f == memberFinalizer }),
	}})
	if err != nil {
		return err
	}
	_, err = m.client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "coracle"})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
