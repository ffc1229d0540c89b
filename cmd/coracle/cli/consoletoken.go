// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

const (
	// consoleNamespace has the service accounts of console tokens.
	consoleNamespace = metav1.NamespaceSystem
	// shortestToken is the API's own limit.
	shortestToken = 10 * time.Minute
)

// consoleTokenFlags are those of `coracle console token`.
type consoleTokenFlags struct {
	role, namespace string
	ttl             time.Duration
}

func (a *App) consoleTokenCommand(k *consoleFlags) *cobra.Command {
	var f consoleTokenFlags
	cmd := &cobra.Command{
		Use: "token", Short: "Make a token to log in to the console of a server", Args: noArgs,
		Long: `Prints a token for the console that servers have with --console-listen. It is good for kubectl --token, too.

It makes what is missing: a service account in kube-system for that role, and its binding. The token ends by itself;
deleting the service account ends all of its tokens.

  coracle console token                                 may see everything but Secrets, for an hour
  coracle console token --role edit --namespace shop    may change what is in the namespace shop`,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.role, "role", "view", "ClusterRole that the token has, such as view, edit, admin or cluster-admin")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "Namespace in which it has the role (the whole cluster)")
	flags.DurationVar(&f.ttl, "ttl", time.Hour, "How long the token is good")
	_ = cmd.RegisterFlagCompletionFunc("role", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{"view", "edit", "admin", "cluster-admin"}, cobra.ShellCompDirectiveNoFileComp
	}) // fails for a flag that does not exist
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		if f.ttl < shortestToken {
			return usageError{cmd, fmt.Errorf("--ttl: %s is too short: the API gives tokens for %s or more", f.ttl, shortestToken)}
		}
		kubeconfig, err := a.kubeconfigOf(k)
		if err != nil {
			return err
		}
		config, err := kubeconfig.ClientConfig()
		if err != nil {
			return fmt.Errorf("reading the kubeconfig: %w", err)
		}
		config.Timeout = apiTimeout
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return fmt.Errorf("making a client: %w", err)
		}
		token, err := f.make(cmd.Context(), client)
		if err != nil {
			return err
		}
		fmt.Fprintln(a.Stdout, token)
		return nil
	})
	return cmd
}

// make makes what is missing, and returns a token.
func (f *consoleTokenFlags) make(ctx context.Context, client kubernetes.Interface) (string, error) {
	if _, err := client.RbacV1().ClusterRoles().Get(ctx, f.role, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return "", fmt.Errorf("the cluster has no ClusterRole %s; view, edit, admin and cluster-admin are there from the start", f.role)
	}
	name := "console-" + f.role
	if f.namespace != "" {
		name += "-in-" + f.namespace
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	account.AutomountServiceAccountToken = new(bool) // no pod has it
	_, err := client.CoreV1().ServiceAccounts(consoleNamespace).Create(ctx, account, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("making the service account %s: %w", name, err)
	}
	meta := metav1.ObjectMeta{Name: "coracle-" + name}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: name, Namespace: consoleNamespace}}
	role := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: f.role}
	if f.namespace != "" {
		_, err = client.RbacV1().RoleBindings(f.namespace).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: role}, metav1.CreateOptions{})
	} else {
		_, err = client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: role}, metav1.CreateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("binding the role %s to it: %w", f.role, err)
	}
	if f.namespace == "" { // who sees the whole cluster sees its servers
		meta.Name += "-status"
		role.Name = clusterconfig.StatusRole
		_, err = client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: role}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return "", fmt.Errorf("binding the role %s to it: %w", role.Name, err)
		}
	}
	seconds := int64(f.ttl / time.Second)
	got, err := client.CoreV1().ServiceAccounts(consoleNamespace).CreateToken(ctx, name,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("making the token: %w", err)
	}
	if got.Status.Token == "" {
		return "", errors.New("the API gave an empty token")
	}
	return got.Status.Token, nil
}
