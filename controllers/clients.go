// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/controller-manager/pkg/clientbuilder"
)

// clients gives every controller the identity that upstream's RBAC roles are bound to, the service account of its name
// in kube-system, by impersonation over the loopback. Upstream's own builder has each controller request a token, which
// the API server would sign and verify only to find out what this process knows already; rights and audit records are
// the same. The service accounts need not exist.
type clients struct {
	base      *rest.Config
	discovery *discoveryCache
}

var _ clientbuilder.ControllerClientBuilder = clients{}

func (c clients) Config(name string) (*rest.Config, error) {
	cfg := rest.AddUserAgent(rest.CopyConfig(c.base), name)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: serviceaccount.MakeUsername(metav1.NamespaceSystem, name)}
	return cfg, nil
}

func (c clients) Client(name string) (kubernetes.Interface, error) {
	cfg, err := c.Config(name)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", name, err)
	}
	return client, nil
}

// DiscoveryClient answers the two questions that controllers repeat every 30 s from the term's shared cache.
func (c clients) DiscoveryClient(name string) (discovery.DiscoveryInterface, error) {
	cfg, err := c.Config(name)
	if err != nil {
		return nil, err
	}
	client, err := discovery.NewDiscoveryClientForConfig(cfg) // a clientset would be sixty more clients
	if err != nil {
		return nil, fmt.Errorf("make a discovery client for %s: %w", name, err)
	}
	return cachedDiscovery{DiscoveryInterface: client, cache: c.discovery}, nil
}

// The OrDie forms exist for the interface. They panic only when a client cannot be made from a
// configuration, and then the term's own clients, which are made from the same one, have failed before.

func (c clients) ConfigOrDie(name string) *rest.Config { return must(c.Config(name)) }

func (c clients) ClientOrDie(name string) kubernetes.Interface { return must(c.Client(name)) }

func (c clients) DiscoveryClientOrDie(name string) discovery.DiscoveryInterface {
	return must(c.DiscoveryClient(name))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
