// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// RuntimeClasses makes a RuntimeClass for each container runtime that a node has found on its machine.
//
// It reads the labels of nodes. It never changes or deletes a RuntimeClass: one with the same name is the operator's,
// or was made before, and pods may name it. It makes only classes of known names, since a node writes the labels.
type RuntimeClasses struct {
	client  kubernetes.Interface
	nodes   coreinformers.NodeInformer
	log     *slog.Logger
	changed timers.Signal
}

// NewRuntimeClasses returns the controller. It registers with the factory, which the caller starts.
func NewRuntimeClasses(client kubernetes.Interface, factory informers.SharedInformerFactory, log *slog.Logger) *RuntimeClasses {
	r := &RuntimeClasses{client: client, nodes: factory.Core().V1().Nodes(), log: log, changed: timers.NewSignal()}
	r.nodes.Informer()
	return r
}

// Run makes the classes until ctx is done.
func (r *RuntimeClasses) Run(ctx context.Context) error {
	synced, err := netinformers.Follow(func(any) { r.changed.Send() }, netinformers.Source{
		Informer: r.nodes.Informer(), Matters: func(old, now any) bool { return runtimesOf(old) != runtimesOf(now) },
	})
	if err != nil || !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return err
	}
	r.changed.Rounds(ctx, 0, func() time.Duration {
		if err := r.reconcile(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("the RuntimeClasses of the nodes' container runtimes could not be made; retrying", "error", err)
			return retryAfter
		}
		return 0
	})
	return nil
}

// runtimesOf returns the names of a Node's runtimes, separated by spaces, and "" for other objects.
func runtimesOf(obj any) string {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return ""
	}
	var names []string
	for _, name := range clusterconfig.Runtimes {
		if n.Labels[clusterconfig.RuntimeLabel+name] == "true" {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

func (r *RuntimeClasses) reconcile(ctx context.Context) error {
	nodes, err := r.nodes.Lister().List(labels.Everything())
	if err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	checked := map[string]bool{}
	for _, n := range nodes {
		for name := range strings.FieldsSeq(runtimesOf(n)) {
			if checked[name] {
				continue
			}
			checked[name] = true
			if err := r.create(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// create makes the class of a runtime, unless there is one with its name.
func (r *RuntimeClasses) create(ctx context.Context, name string) error {
	classes := r.client.NodeV1().RuntimeClasses()
	_, err := classes.Get(ctx, name, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return wrapError("RuntimeClass", name, err)
	}
	_, err = classes.Create(ctx, &nodev1.RuntimeClass{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{managedBy: managerName}},
		Handler:    name,
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{clusterconfig.RuntimeLabel + name: "true"}},
	}, metav1.CreateOptions{FieldManager: managerName})
	if apierrors.IsAlreadyExists(err) { // the operator was faster
		return nil
	}
	return wrapError("RuntimeClass", name, err)
}
