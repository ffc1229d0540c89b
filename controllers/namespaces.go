// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	namespacecontroller "k8s.io/kubernetes/pkg/controller/namespace"
)

// namespaceController deletes the content of deleted namespaces.
type namespaceController struct {
	*namespacecontroller.NamespaceController
	workers int
}

func (c namespaceController) Name() string { return names.NamespaceController }

func (c namespaceController) Run(ctx context.Context) { c.NamespaceController.Run(ctx, c.workers) }

// newNamespaceController replaces upstream's constructor (cmd/kube-controller-manager/app/core.go). Upstream's
// controller asks at once for the list of resources, and ends the process when the list is empty. But a term may end at
// that very moment.
func newNamespaceController(ctx context.Context, cc app.ControllerContext, unused func(group string) bool) (app.Controller, error) {
	config, err := cc.ClientBuilder.Config("namespace-controller")
	if err != nil {
		return nil, fmt.Errorf("make a client for the namespace controller: %w", err)
	}
	config.QPS *= 20 // upstream's factors; they have an effect only where an operator sets limits
	config.Burst *= 100
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for the namespace controller: %w", err)
	}
	md, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for the namespace controller: %w", err)
	}
	o := cc.ComponentConfig.NamespaceController
	c := namespacecontroller.NewNamespaceController(ctx, client, md, neverEmpty(func() ([]*metav1.APIResourceList, error) {
		lists, err := client.Discovery().ServerPreferredNamespacedResources()
		return usedGroups(lists, unused), err
	}),
		cc.InformerFactory.Core().V1().Namespaces(), o.NamespaceSyncPeriod.Duration, corev1.FinalizerKubernetes)
	return namespaceController{c, int(o.ConcurrentNamespaceSyncs)}, nil
}

// neverEmpty returns a group without resources, and an error, when discovery returns none at all. A namespace whose
// content could not be listed is thus not treated as empty.
func neverEmpty(discover func() ([]*metav1.APIResourceList, error)) func() ([]*metav1.APIResourceList, error) {
	return func() ([]*metav1.APIResourceList, error) {
		lists, err := discover()
		if len(lists) > 0 {
			return lists, err
		}
		if err == nil {
			err = errors.New("the API server names no resources")
		}
		return []*metav1.APIResourceList{{GroupVersion: corev1.SchemeGroupVersion.String()}}, err
	}
}
