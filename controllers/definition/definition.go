// SPDX-License-Identifier: Apache-2.0

// Package definition manages the CustomResourceDefinitions of kinds that belong to coracle. It makes them, replaces
// those of an older version, and removes them where the part that reads them is disabled.
//
// It owns the definitions that it is given, and no objects of their kinds. It runs no goroutines: callers decide when.
package definition

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	nodeutil "k8s.io/kubernetes/pkg/util/node"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// managedBy and manager are the label of definitions that coracle has made.
	managedBy   = "app.kubernetes.io/managed-by"
	managerName = "coracle"
	// numberAnnotation is an annotation that increases with each change of a definition.
	numberAnnotation = "coracle.dev/definition"

	// servedTimeout is the time for which Define waits until the API server serves a newly defined kind. servedPause is
	// the interval of the requests.
	servedTimeout = time.Minute
	servedPause   = 200 * time.Millisecond
	// retryPause is the wait of UntilDone after a failure.
	retryPause = time.Second
	// noNode is how long AwaitTurn waits for a node, since a cluster may have none for a while.
	noNode = 15 * time.Second
)

// Kind is a kind with its definition.
type Kind struct {
	Resource schema.GroupVersionResource
	// YAML is the CustomResourceDefinition, with the label managedBy and the annotation number.
	YAML []byte
}

func definitionsClient(c dynamic.Interface) dynamic.ResourceInterface {
	return c.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
}

// Read returns the CustomResourceDefinition as an object.
func (k Kind) Read() (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(k.YAML, &u.Object); err != nil {
		return nil, fmt.Errorf("reading the definition of %s: %w", k.Resource.Resource, err)
	}
	return u, nil
}

// Define defines the kind in the cluster, and returns when its objects are served. It does not change a definition of
// this version or of a later one, so that servers of two versions do not replace each other's. It does not change one
// that another client has made, either.
func (k Kind) Define(ctx context.Context, c dynamic.Interface) error {
	want, err := k.Read()
	if err != nil {
		return err
	}
	if err := Put(ctx, c, want, func(have *unstructured.Unstructured) bool { return numberOf(have) < numberOf(want) }); err != nil {
		return err
	}
	return k.awaitServed(ctx, c)
}

// Put creates a missing definition. It replaces an older one that coracle has made, and does not change one of another
// client.
func Put(ctx context.Context, c dynamic.Interface, want *unstructured.Unstructured,
	older func(have *unstructured.Unstructured) bool) error {
	have, err := definitionsClient(c).Get(ctx, want.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = definitionsClient(c).Create(ctx, want, metav1.CreateOptions{FieldManager: managerName})
	case err == nil && have.GetLabels()[managedBy] == managerName && older(have):
		_, err = definitionsClient(c).Update(ctx, renewedDefinition(have, want), metav1.UpdateOptions{FieldManager: managerName})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("defining %s: %w", want.GetName(), err)
	}
	return nil
}

// Remove removes a definition that coracle has made, if unused returns true. It does not touch one of another client.
func Remove(ctx context.Context, c dynamic.Interface, name string, unused func() (bool, error)) error {
	have, err := definitionsClient(c).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && have.GetLabels()[managedBy] != managerName {
		return nil
	}
	if err == nil {
		var ok bool
		if ok, err = unused(); err == nil && !ok {
			return nil
		}
	}
	if err == nil {
		err = definitionsClient(c).Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.GetUID()))})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing the definition %s: %w", name, err)
	}
	return nil
}

// renewedDefinition returns an existing definition with the content of this version. Labels and annotations of other
// clients stay.
func renewedDefinition(have, want *unstructured.Unstructured) *unstructured.Unstructured {
	out := have.DeepCopy()
	out.SetLabels(labels.Merge(out.GetLabels(), want.GetLabels()))
	out.SetAnnotations(labels.Merge(out.GetAnnotations(), want.GetAnnotations()))
	out.Object["spec"] = want.DeepCopy().Object["spec"]
	return out
}

func numberOf(u *unstructured.Unstructured) int {
	n, _ := strconv.Atoi(u.GetAnnotations()[numberAnnotation]) // 0 for one that another client has made
	return n
}

func (k Kind) awaitServed(ctx context.Context, c dynamic.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	for {
		_, err := c.Resource(k.Resource).List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil {
			return nil
		}
		if !timers.Sleep(ctx, servedPause) {
			return fmt.Errorf("waiting until %s are served: %w", k.Resource.Resource, err)
		}
	}
}

// Defined reports whether the kind is defined in the cluster, by coracle or by another client.
func (k Kind) Defined(ctx context.Context, c dynamic.Interface) (bool, error) {
	want, err := k.Read()
	if err != nil {
		return false, err
	}
	_, err = definitionsClient(c).Get(ctx, want.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Remove removes the kind from a cluster that does not use it. It keeps a kind with objects, which would be deleted
// with it and which a client has written. It returns the number of objects.
func (k Kind) Remove(ctx context.Context, c dynamic.Interface) (left int, err error) {
	want, err := k.Read()
	if err != nil {
		return 0, err
	}
	err = Remove(ctx, c, want.GetName(), func() (bool, error) {
		all, err := c.Resource(k.Resource).List(ctx, metav1.ListOptions{})
		if err == nil {
			left = len(all.Items)
		}
		return left == 0, err
	})
	return left, err
}

// AwaitTurn returns when one of the nodes is ready, when a value is sent on wanted, or after fifteen seconds. A
// starting server has more urgent work than to serve kinds without objects (docs/adr/0145-start-of-a-node.md). It
// returns false when ctx is done before. nodes is an informer of nodes that was started.
func AwaitTurn(ctx context.Context, nodes cache.SharedIndexInformer, wanted <-chan struct{}) bool {
	ready := timers.NewSignal()
	seen := func(o any) {
		if n, ok := o.(*corev1.Node); ok && nodeutil.IsNodeReady(n) {
			ready.Send()
		}
	}
	r, err := nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, o any) { seen(o) }})
	if err != nil { // the informer has stopped
		return ctx.Err() == nil
	}
	defer func() { _ = nodes.RemoveEventHandler(r) }()
	select {
	case <-ctx.Done():
		return false
	case <-ready:
	case <-wanted:
	case <-time.After(noNode):
	}
	return true
}

// UntilDone calls f until it succeeds or ctx is done. It logs each new error once.
func UntilDone(ctx context.Context, log *slog.Logger, trouble string, f func() error) {
	timers.Retry(ctx, log, retryPause, trouble, f)
}
