// SPDX-License-Identifier: Apache-2.0

package nodemembers

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/roster"
)

const (
	// roleRetry is the pause after a failed attempt to set the role.
	roleRetry = 5 * time.Second
)

// Role marks this machine's node as a server's: with the label, the server's ID in the store, and the finalizer by
// which the server is removed from the store when the node is deleted. The kubelet may not write the label (the
// NodeRestriction admission plugin refuses node-role.kubernetes.io). So each server labels its own node, whether it
// leads or not.
type Role struct {
	client kubernetes.Interface
	node   string
	id     string // the server's ID in the store
	store  Members
	log    *slog.Logger
}

// NewRole returns the Role of a node whose server has this ID in the store.
func NewRole(config *rest.Config, node, id string, store Members, log *slog.Logger) (*Role, error) {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "node-role"))
	if err != nil {
		return nil, fmt.Errorf("making the client for the node's role: %w", err)
	}
	return &Role{client: client, node: node, id: id, store: store, log: log}, nil
}

// Run watches the one node until ctx is done: it may be deleted and register again.
func (r *Role) Run(ctx context.Context) {
	// Only the fields that are used are kept.
	trim := func(obj any) (any, error) {
		if n, ok := obj.(*corev1.Node); ok {
			return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
				Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels,
				Annotations: map[string]string{clusterconfig.ServerIDAnnotation: n.Annotations[clusterconfig.ServerIDAnnotation]},
				Finalizers:  n.Finalizers, DeletionTimestamp: n.DeletionTimestamp,
			}}, nil
		}
		return obj, nil
	}
	changed := timers.NewSignal() // sent when the node has to be checked
	lw := cache.NewListWatchFromClient(r.client.CoreV1().RESTClient(), "nodes", metav1.NamespaceAll,
		fields.OneTermEqualSelector(metav1.ObjectNameField, r.node))
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: lw, ObjectType: &corev1.Node{}, Transform: trim,
		Handler: cache.ResourceEventHandlerFuncs{AddFunc: func(any) { changed.Send() }, UpdateFunc: func(any, any) { changed.Send() }},
	})
	var beside sync.WaitGroup
	beside.Go(func() { informer.RunWithContext(ctx) })
	defer beside.Wait()
	changed.Rounds(ctx, 0, func() time.Duration {
		item, exists, err := store.GetByKey(r.node)
		if err != nil || !exists || r.complete(item.(*corev1.Node)) {
			return 0
		}
		if err := r.writeRole(ctx, item.(*corev1.Node).Annotations[clusterconfig.ServerIDAnnotation]); err != nil && ctx.Err() == nil {
			r.log.Warn("this server's node could not be marked as one of the control plane; retrying",
				"node", r.node, "error", err)
			return roleRetry
		}
		return 0
	})
}

// complete says that the Node needs no change. No finalizer can be added to a node that is being deleted.
func (r *Role) complete(n *corev1.Node) bool {
	return n.DeletionTimestamp != nil || roster.IsServer(n) && n.Annotations[clusterconfig.ServerIDAnnotation] == r.id &&
		slices.Contains(n.Finalizers, memberFinalizer)
}

// writeRole writes what is missing. former is the server that the node belonged to before, if any. A reinstalled
// machine returns under its name, and its former server is removed from the store if it does not answer.
func (r *Role) writeRole(ctx context.Context, former string) error {
	if former != r.id && roster.IsMember(r.store.Members(), former) {
		if isResponsive(r.store.Survey(ctx), former) {
			return fmt.Errorf("the node belongs to the server %s, which is alive: two machines have the same node name, or the annotation %s was written by hand",
				former, clusterconfig.ServerIDAnnotation)
		}
		if err := r.store.RemoveMember(ctx, former); err != nil && status.Code(err) != codes.NotFound {
			return fmt.Errorf("removing this machine's former server %s from the store: %w", former, err)
		}
		r.log.Info("removed this machine's former server from the store", "node", r.node, "member", former)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels": map[string]string{roster.RoleLabel: roster.RoleValue},
		// An order to leave can only be given after this, by an administrator.
		"annotations": map[string]any{clusterconfig.ServerIDAnnotation: r.id, clusterconfig.LeaveAnnotation: nil},
		"finalizers":  []string{memberFinalizer}, // merged with others
	}})
	if err != nil {
		return err
	}
	_, err = r.client.CoreV1().Nodes().Patch(ctx, r.node, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{FieldManager: "coracle"})
	if apierrors.IsNotFound(err) {
		return nil // deleted in the meantime; its next registration is an event
	}
	return err
}

func isResponsive(all []raftstore.MemberState, id string) bool {
	return slices.ContainsFunc(all, func(m raftstore.MemberState) bool { return m.Name == id && m.Answers })
}
