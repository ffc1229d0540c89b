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

// clients gives each controller the identity to which upstream's RBAC roles are bound, the service account of its name
// in kube-system, by impersonation over the loopback. Upstream's own builder makes each controller request a token,
// which the API server would sign and verify only to learn what this process knows already. Permissions and audit
// records are the same. The service accounts need not exist.
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

// DiscoveryClient returns a client that answers the two requests which controllers repeat every 30 s from the term's
// shared cache.
func (c clients) DiscoveryClient(name string) (discovery.DiscoveryInterface, error) {
	cfg, err := c.Config(name)
	if err != nil {
		return nil, err
	}
	client, err := discovery.NewDiscoveryClientForConfig(cfg) // a clientset would contain sixty more clients
	if err != nil {
		return nil, fmt.Errorf("make a discovery client for %s: %w", name, err)
	}
	return cachedDiscovery{DiscoveryInterface: client, cache: c.discovery}, nil
}

// The OrDie methods exist for the interface. They panic only when no client can be made from a configuration. The
// term's own clients are made from the same one, so they would have failed before.

func (c clients) ConfigOrDie(name string) *rest.Config { return panicOnError(c.Config(name)) }

func (c clients) ClientOrDie(name string) kubernetes.Interface { return panicOnError(c.Client(name)) }

func (c clients) DiscoveryClientOrDie(name string) discovery.DiscoveryInterface {
	return panicOnError(c.DiscoveryClient(name))
}

func panicOnError[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
