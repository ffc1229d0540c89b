// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/compile"
)

// gatherer reads the objects and fills a Report.
type gatherer struct {
	o     Options
	files *Objects
	state compile.State
	r     Report

	services     map[types.NamespacedName]*corev1.Service
	servicesRead bool
}

// isDenied reports whether an error is one of missing rights.
func isDenied(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) }

// read reads the objects that are not read by their names. Objects of files take the place of the cluster's.
func (g *gatherer) read(ctx context.Context) error {
	g.state.AllFindings, g.state.Rules, g.state.Service, g.state.Now = true, g.o.Rules, g.service, g.o.Now
	g.services = map[types.NamespacedName]*corev1.Service{}
	ingresses, classes := map[types.NamespacedName]*networkingv1.Ingress{}, map[types.NamespacedName]*networkingv1.IngressClass{}
	if g.o.Client != nil {
		if err := g.readCluster(ctx, ingresses, classes); err != nil {
			return err
		}
	} else {
		g.addNote("no cluster was read: Secrets, ConfigMaps and Services that are not in the files were not looked for")
	}
	for name, ing := range g.files.ingresses {
		own := ing.DeepCopy()
		if have := ingresses[name]; have != nil {
			own.CreationTimestamp = have.CreationTimestamp
		}
		if own.CreationTimestamp.IsZero() {
			own.CreationTimestamp = metav1.NewTime(g.o.Now)
		}
		ingresses[name] = own
	}
	for _, s := range g.files.secrets {
		s.Data, s.StringData = secretData(s), nil
	}
	maps.Copy(classes, g.files.classes)
	maps.Copy(g.services, g.files.services)
	g.state.Ingresses, g.state.Classes = sortedValues(ingresses), sortedValues(classes)
	if m := g.files.configMaps[g.o.Defaults]; m != nil {
		g.state.Defaults = m
	}
	return nil
}

func (g *gatherer) service(namespace, name string) *corev1.Service {
	s := g.services[types.NamespacedName{Namespace: namespace, Name: name}]
	if s == nil && (!g.servicesRead || g.o.Namespace != "" && g.o.Namespace != namespace) {
		return compile.UnknownService
	}
	return s
}

// readCluster reads the cluster's Ingresses, and what of classes, Services and defaults this user may read.
func (g *gatherer) readCluster(ctx context.Context, ingresses map[types.NamespacedName]*networkingv1.Ingress,
	classes map[types.NamespacedName]*networkingv1.IngressClass) error {
	list, err := g.o.Client.NetworkingV1().Ingresses(g.o.Namespace).List(ctx, metav1.ListOptions{})
	switch {
	case isDenied(err) && g.o.Namespace == "":
		return fmt.Errorf("the Ingresses of all namespaces may not be read; name a namespace by -n NAMESPACE: %w", err)
	case err != nil:
		return fmt.Errorf("reading Ingresses: %w", err)
	}
	for i := range list.Items {
		ingresses[nameOf(&list.Items[i])] = &list.Items[i]
	}
	if g.o.Namespace != "" {
		g.addNote("only the namespace %s was read: an Ingress of another one may have the same host and path", g.o.Namespace)
	}
	of, err := g.o.Client.NetworkingV1().IngressClasses().List(ctx, metav1.ListOptions{})
	switch {
	case isDenied(err):
		g.addNote("IngressClasses may not be read: the classes %s, nginx and traefik are taken as served", compile.Class)
	case err != nil:
		return fmt.Errorf("reading IngressClasses: %w", err)
	default:
		for i := range of.Items {
			classes[nameOf(&of.Items[i])] = &of.Items[i]
		}
	}
	services, err := g.o.Client.CoreV1().Services(g.o.Namespace).List(ctx, metav1.ListOptions{})
	switch {
	case isDenied(err):
		g.addNote("Services may not be read, and were not looked for")
	case err != nil:
		return fmt.Errorf("reading Services: %w", err)
	default:
		g.servicesRead = true
		for i := range services.Items {
			g.services[nameOf(&services.Items[i])] = &services.Items[i]
		}
	}
	m, err := g.o.Client.CoreV1().ConfigMaps(g.o.Defaults.Namespace).Get(ctx, g.o.Defaults.Name, metav1.GetOptions{})
	switch {
	case err == nil:
		g.state.Defaults = m
	case isDenied(err):
		g.addNote("the ConfigMap %s with defaults for all Ingresses may not be read; there may be one", g.o.Defaults)
	case apierrors.IsNotFound(err) && g.o.Defaults != compile.Defaults && g.files.configMaps[g.o.Defaults] == nil:
		return fmt.Errorf("there is no ConfigMap %s, which --defaults names", g.o.Defaults)
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("reading the ConfigMap %s: %w", g.o.Defaults, err)
	}
	return nil
}

// readNamed reads the Secrets and ConfigMaps that Ingresses name. If the user may not read one of them, no
// Ingress is checked.
func (g *gatherer) readNamed(ctx context.Context) (err error) {
	var secret func(types.NamespacedName) (*corev1.Secret, error)
	var configMap func(types.NamespacedName) (*corev1.ConfigMap, error)
	if c := g.o.Client; c != nil {
		secret = func(name types.NamespacedName) (*corev1.Secret, error) {
			return c.CoreV1().Secrets(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
		}
		configMap = func(name types.NamespacedName) (*corev1.ConfigMap, error) {
			return c.CoreV1().ConfigMaps(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
		}
	}
	if g.state.Secrets, err = existingNamed(g, "Secrets", compile.Wanted(g.state), g.files.secrets, secret); err != nil {
		return err
	}
	g.state.ConfigMaps, err = existingNamed(g, "ConfigMaps", compile.WantedConfigMaps(g.state), g.files.configMaps, configMap)
	return err
}

// existingNamed returns the wanted objects that exist, of the files or by get. It returns nil if it is unknown of some
// whether they exist, which it notes. get is nil for no cluster.
func existingNamed[T any](g *gatherer, what string, wanted map[types.NamespacedName]bool, files map[types.NamespacedName]*T,
	get func(types.NamespacedName) (*T, error)) (map[types.NamespacedName]*T, error) {
	out := map[types.NamespacedName]*T{}
	for name := range wanted {
		if out[name] = files[name]; out[name] != nil {
			continue
		}
		delete(out, name)
		if get == nil {
			return nil, nil
		}
		o, err := get(name)
		switch {
		case err == nil:
			out[name] = o
		case isDenied(err):
			g.addNote("%s may not be read: what depends on them was not checked", what)
			return nil, nil
		case !apierrors.IsNotFound(err):
			return nil, fmt.Errorf("reading the %s %s: %w", what, name, err)
		}
	}
	return out, nil
}
