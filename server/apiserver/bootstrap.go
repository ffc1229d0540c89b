// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	schedulingapiv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// bootstrapParallel lets the store write many bootstrap objects with one flush. One after the other they take
	// seconds on an SD card.
	bootstrapParallel = 16
	bootstrapRetry    = 500 * time.Millisecond
)

// ownBootstrapHooks replaces two of upstream's post-start hooks by our own. Upstream's hooks first wait a second, and
// end the process when the store has no quorum for thirty seconds. Ours begin at once and retry until they succeed or
// the server stops. ownBootstrapHooks has to be called before the core server is built.
func ownBootstrapHooks(c *genericapiserver.Config, rbac bool, logger *slog.Logger) error {
	c.DisabledPostStartHooks.Insert(rbacrest.PostStartHookName, schedulingrest.PostStartHookName)
	hooks := map[string]func(kubernetes.Interface) []func(context.Context) error{"coracle/bootstrap-priority-classes": priorityClasses}
	if rbac {
		hooks["coracle/bootstrap-roles"] = bootstrapRoles
	}
	for name, tasks := range hooks {
		if err := c.AddPostStartHook(name, untilDone(name, tasks, logger)); err != nil {
			return fmt.Errorf("adding the hook %s: %w", name, err)
		}
	}
	return nil
}

// untilDone repeats tasks until each has succeeded once. The hook that it returns never fails: upstream would exit.
func untilDone(name string, tasks func(kubernetes.Interface) []func(context.Context) error,
	logger *slog.Logger) genericapiserver.PostStartHookFunc {
	return func(hook genericapiserver.PostStartHookContext) error {
		client, err := kubernetes.NewForConfig(hook.LoopbackClientConfig)
		if err != nil {
			return fmt.Errorf("building a client: %w", err)
		}
		left := tasks(client)
		for last := ""; ; {
			left, err = runTasks(hook, left)
			if len(left) == 0 || hook.Err() != nil {
				return nil
			}
			if err.Error() != last {
				last = err.Error()
				logger.Warn("the objects that every cluster has cannot be written yet; retrying", "hook", name, "missing", len(left),
					"error", err)
			}
			if !timers.Sleep(hook, bootstrapRetry) {
				return nil
			}
		}
	}
}

// runTasks runs tasks concurrently. It returns those that failed, with one of their errors.
func runTasks(ctx context.Context, tasks []func(context.Context) error) (failed []func(context.Context) error, err error) {
	var mu sync.Mutex
	workqueue.ParallelizeUntil(context.WithoutCancel(ctx), bootstrapParallel, len(tasks), func(i int) {
		if taskErr := tasks[i](ctx); taskErr != nil {
			mu.Lock()
			defer mu.Unlock()
			failed, err = append(failed, tasks[i]), taskErr
		}
	})
	return failed, err
}

// priorityClasses returns tasks that create the priority classes of system pods. These are immutable once created.
func priorityClasses(client kubernetes.Interface) []func(context.Context) error {
	var tasks []func(context.Context) error
	for _, class := range schedulingapiv1.SystemPriorityClasses() {
		tasks = append(tasks, func(ctx context.Context) error {
			_, err := client.SchedulingV1().PriorityClasses().Get(ctx, class.Name, metav1.GetOptions{})
			if !apierrors.IsNotFound(err) {
				return err
			}
			if _, err = client.SchedulingV1().PriorityClasses().Create(ctx, class, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
	}
	return tasks
}

// bootstrapRoles returns tasks that reconcile upstream's default roles and bindings. Missing rules are added, and those
// that an administrator added stay. Objects with rbac.authorization.kubernetes.io/autoupdate=false are left alone.
// Upstream's migrations of roles from Kubernetes 1.8 to 1.9 and from 1.13 to 1.14 are left out: no cluster of ours was
// ever that old.
func bootstrapRoles(client kubernetes.Interface) []func(context.Context) error {
	var tasks []func(context.Context) error
	role := func(r reconciliation.RuleOwner, m reconciliation.RuleOwnerModifier) {
		tasks = append(tasks, func(ctx context.Context) error {
			_, err := (&reconciliation.ReconcileRoleOptions{Role: r, Client: m, Confirm: true}).Run()
			return errors.Join(err, ctx.Err())
		})
	}
	binding := func(b reconciliation.RoleBinding, m reconciliation.RoleBindingModifier) {
		tasks = append(tasks, func(ctx context.Context) error {
			_, err := (&reconciliation.ReconcileRoleBindingOptions{RoleBinding: b, Client: m, Confirm: true}).Run()
			return errors.Join(err, ctx.Err())
		})
	}
	rbac, namespaces := client.RbacV1(), client.CoreV1().Namespaces()
	for _, r := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &r}, reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()})
	}
	for _, b := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &b},
			reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()})
	}
	for _, list := range bootstrappolicy.NamespaceRoles() {
		for _, r := range list {
			role(reconciliation.RoleRuleOwner{Role: &r}, reconciliation.RoleModifier{Client: rbac, NamespaceClient: namespaces})
		}
	}
	for _, list := range bootstrappolicy.NamespaceRoleBindings() {
		for _, b := range list {
			binding(reconciliation.RoleBindingAdapter{RoleBinding: &b}, reconciliation.RoleBindingClientAdapter{Client: rbac,
				NamespaceClient: namespaces})
		}
	}
	return tasks
}
