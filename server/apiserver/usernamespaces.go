// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/discovery"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"
	rbacauthorizer "k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// userNamespaces finds the namespaces in which RBAC gives a user rights. The API's list of namespaces has either all or
// none (kubernetes issue 112686). userNamespaces reads the caches of the RBAC authorizer and stores nothing.
type userNamespaces struct {
	namespaces corelisters.NamespaceLister
	// cluster resolves the rights from ClusterRoleBindings, inside those from the RoleBindings of one namespace.
	cluster, inside validation.AuthorizationRuleResolver
	// kinds returns the namespaced resources.
	kinds func(ctx context.Context) ([]schema.GroupResource, error)
}

// noClusterBindings is an empty list of ClusterRoleBindings, so that these are not evaluated for each namespace.
type noClusterBindings struct{}

// ListClusterRoleBindings implements validation.ClusterRoleBindingLister.
func (noClusterBindings) ListClusterRoleBindings(context.Context) ([]*rbacv1.ClusterRoleBinding, error) {
	return nil, nil
}

// installNamespaces serves clusterconfig.NamespacesPath if RBAC is an authorizer.
func (ch *chain) installNamespaces(g *generic) error {
	if !g.rbac {
		return nil
	}
	client, err := discovery.NewDiscoveryClientForConfig(g.config.LoopbackClientConfig)
	if err != nil {
		return fmt.Errorf("building a client for discovery: %w", err)
	}
	rbac := g.informers.Rbac().V1() // the authorizer needs all of these informers anyway
	roles := &rbacauthorizer.RoleGetter{Lister: rbac.Roles().Lister()}
	roleBindings := &rbacauthorizer.RoleBindingLister{Lister: rbac.RoleBindings().Lister()}
	clusterRoles := &rbacauthorizer.ClusterRoleGetter{Lister: rbac.ClusterRoles().Lister()}
	clusterRoleBindings := &rbacauthorizer.ClusterRoleBindingLister{Lister: rbac.ClusterRoleBindings().Lister()}
	u := &userNamespaces{
		namespaces: g.informers.Core().V1().Namespaces().Lister(),
		cluster:    validation.NewDefaultRuleResolver(roles, roleBindings, clusterRoles, clusterRoleBindings),
		inside:     validation.NewDefaultRuleResolver(roles, roleBindings, clusterRoles, noClusterBindings{}),
		kinds: func(ctx context.Context) ([]schema.GroupResource, error) {
			_, lists, err := client.ServerGroupsAndResourcesWithContext(ctx)
			if len(lists) == 0 {
				return nil, fmt.Errorf("reading the API's resources: %w", err)
			}
			return namespacedResources(lists), nil // without the groups that do not answer
		},
	}
	ch.aggregator.GenericAPIServer.Handler.NonGoRestfulMux.UnlistedHandle(clusterconfig.NamespacesPath, u)
	return nil
}

// namespacedResources returns the namespaced resources of lists, without subresources.
func namespacedResources(lists []*metav1.APIResourceList) []schema.GroupResource {
	var out []schema.GroupResource
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		for i := range list.APIResources {
			if r := &list.APIResources[i]; r.Namespaced && !strings.Contains(r.Name, "/") {
				out = append(out, gv.WithResource(r.Name).GroupResource())
			}
		}
	}
	return out
}

// ServeHTTP implements http.Handler.
func (u *userNamespaces) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	asking, known := request.UserFrom(r.Context())
	if !known {
		http.Error(w, "the request has no user", http.StatusUnauthorized)
		return
	}
	names, err := u.namespacesOf(r.Context(), asking)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(clusterconfig.Namespaces{Namespaces: names}) // an error means that the client has ended
}

// namespacesOf returns the names of a user's namespaces. These are all namespaces when a ClusterRoleBinding gives
// rights to namespaced resources, and else those in which a RoleBinding gives rights. A binding to a missing role gives
// none.
func (u *userNamespaces) namespacesOf(ctx context.Context, asking user.Info) ([]string, error) {
	all, err := u.everywhere(ctx, asking)
	if err != nil {
		return nil, err
	}
	namespaces, err := u.namespaces.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("listing the namespaces: %w", err)
	}
	names := []string{}
	for _, ns := range namespaces {
		has := all
		if !has {
			u.inside.VisitRulesFor(ctx, asking, ns.Name, func(_ fmt.Stringer, rule *rbacv1.PolicyRule, _ error) bool {
				has = has || rule != nil
				return !has
			})
		}
		if has {
			names = append(names, ns.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// everywhere says whether a user has rights to a resource in all namespaces. It ignores two kinds of rights: to objects
// by name, as their namespace is not known, and those that every user has, to discovery and to self-reviews
// (system:basic-user).
func (u *userNamespaces) everywhere(ctx context.Context, asking user.Info) (bool, error) {
	if slices.Contains(asking.GetGroups(), user.SystemPrivilegedGroup) {
		return true, nil
	}
	var rules []*rbacv1.PolicyRule
	u.cluster.VisitRulesFor(ctx, asking, "", func(_ fmt.Stringer, rule *rbacv1.PolicyRule, _ error) bool {
		if rule != nil && len(rule.Resources) > 0 && len(rule.ResourceNames) == 0 && !isSelfReview(rule) {
			rules = append(rules, rule)
		}
		return true
	})
	if len(rules) == 0 {
		return false, nil
	}
	kinds, err := u.kinds(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(rules, func(rule *rbacv1.PolicyRule) bool {
		return slices.ContainsFunc(kinds, func(kind schema.GroupResource) bool { return ruleCovers(rule, kind) })
	}), nil
}

// isSelfReview says whether a rule is only about the groups of self-reviews, by which users ask who they are and what
// they may do.
func isSelfReview(rule *rbacv1.PolicyRule) bool {
	return !slices.ContainsFunc(rule.APIGroups, func(group string) bool {
		return group != "authorization.k8s.io" && group != "authentication.k8s.io"
	})
}

// ruleCovers says whether a rule gives a right to a resource or to one of its subresources.
func ruleCovers(rule *rbacv1.PolicyRule, kind schema.GroupResource) bool {
	return slices.ContainsFunc(rule.APIGroups, func(group string) bool { return group == rbacv1.APIGroupAll || group == kind.Group }) &&
		slices.ContainsFunc(rule.Resources, func(resource string) bool {
			of, _, _ := strings.Cut(resource, "/")
			return of == rbacv1.ResourceAll || of == kind.Resource
		})
}
