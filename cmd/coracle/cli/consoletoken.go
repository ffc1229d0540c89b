// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
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
	// consoleNamespace is the namespace of the service accounts of console tokens. It holds nothing else: a user who
	// may make tokens for the accounts of a namespace has the rights of each of these accounts.
	consoleNamespace = "coracle-console"
	// shortestToken is the shortest lifetime that the API allows for a token.
	shortestToken = 10 * time.Minute
	// consoleLabel marks the objects of a token. The annotations hold when the token ends, its role, and the namespace
	// of that role.
	consoleLabel         = "coracle.dev/console-token"
	consoleEnds          = "coracle.dev/ends"
	consoleRole          = "coracle.dev/role"
	consoleRoleNamespace = "coracle.dev/role-namespace"
	// statusSuffix is the suffix of the name of an account's second binding, which is to clusterconfig.StatusRole.
	statusSuffix = "-status"
)

type consoleTokenFlags struct {
	role, namespace string
	ttl             time.Duration
}

func consoleTokenCommand(k *kubeconfigFlags) *cobra.Command {
	var f consoleTokenFlags
	cmd := &cobra.Command{
		Use: "token", Short: "Make a token to log in to the console of a server", Args: noArgs,
		Long: `Prints a token for the console that servers have with --console-listen. It also works with kubectl --token.

Each token has a service account of its own in the namespace coracle-console, and a binding of the role. It expires
by itself. Deleting the account revokes it earlier. Making the next token removes the accounts of expired ones.

  coracle console token                                 may see everything but Secrets, for an hour
  coracle console token --role edit --namespace shop    may change what is in the namespace shop`,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.role, "role", "view", "ClusterRole that the token has, such as view, edit, admin or cluster-admin")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "Namespace in which it has the role (the whole cluster)")
	flags.DurationVar(&f.ttl, "ttl", time.Hour, "How long the token is valid")
	_ = cmd.RegisterFlagCompletionFunc("role", // fails for a flag that does not exist
		cobra.FixedCompletions([]string{"view", "edit", "admin", "cluster-admin"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		if f.ttl < shortestToken {
			return usageError{cmd, fmt.Errorf("--ttl: %s is too short: the API gives tokens for %s or more", f.ttl, shortestToken)}
		}
		kubeconfig, err := k.load()
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
		token, err := f.make(cmd.Context(), client, time.Now())
		if err != nil {
			return err
		}
		cmd.Println(token)
		return nil
	})
	return cmd
}

// make makes a service account for one token, and returns the token. First it removes accounts whose tokens have ended.
// It never uses an existing account, because another user may have a token of that account.
func (f *consoleTokenFlags) make(ctx context.Context, client kubernetes.Interface, now time.Time) (_ string, err error) {
	if _, err := client.RbacV1().ClusterRoles().Get(ctx, f.role, metav1.GetOptions{}); err != nil {
		return "", fmt.Errorf("reading the ClusterRole %s (view, edit, admin and cluster-admin are there from the start): %w", f.role, err)
	}
	if f.namespace != "" {
		if _, err := client.CoreV1().Namespaces().Get(ctx, f.namespace, metav1.GetOptions{}); err != nil {
			return "", fmt.Errorf("reading the namespace %s: %w", f.namespace, err)
		}
	}
	accounts := client.CoreV1().ServiceAccounts(consoleNamespace)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: consoleNamespace, Labels: map[string]string{consoleLabel: "true"}}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil &&
		!apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("making the namespace %s: %w", consoleNamespace, err)
	}
	if err := removeEnded(ctx, client, now); err != nil {
		return "", err
	}
	o := metav1.ObjectMeta{
		Name: "console-" + strings.ToLower(rand.Text()[:12]), Labels: map[string]string{consoleLabel: "true"},
		Annotations: map[string]string{
			consoleEnds: now.Add(f.ttl).UTC().Format(time.RFC3339), consoleRole: f.role, consoleRoleNamespace: f.namespace,
		},
	}
	account := &corev1.ServiceAccount{ObjectMeta: o, AutomountServiceAccountToken: new(bool)}
	if _, err := accounts.Create(ctx, account, metav1.CreateOptions{}); err != nil {
		return "", fmt.Errorf("making the service account %s: %w", o.Name, err)
	}
	defer func() {
		if err != nil { // nothing may remain of a token that could not be made
			err = errors.Join(err, removeAccount(context.WithoutCancel(ctx), client, o))
		}
	}()
	if err := f.bind(ctx, client, o); err != nil {
		return "", err
	}
	seconds := int64(f.ttl / time.Second)
	wanted := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	got, err := accounts.CreateToken(ctx, o.Name, wanted, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("making the token: %w", err)
	}
	return got.Status.Token, nil
}

// bind binds the role to an account. An account with a role in the whole cluster is also bound to
// clusterconfig.StatusRole, so that it can see the servers.
func (f *consoleTokenFlags) bind(ctx context.Context, client kubernetes.Interface, account metav1.ObjectMeta) error {
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: account.Name, Namespace: consoleNamespace}}
	role := func(name string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
	}
	if f.namespace != "" {
		b := &rbacv1.RoleBinding{ObjectMeta: account, Subjects: subjects, RoleRef: role(f.role)}
		if _, err := client.RbacV1().RoleBindings(f.namespace).Create(ctx, b, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("binding the role %s in %s: %w", f.role, f.namespace, err)
		}
		return nil
	}
	for suffix, name := range map[string]string{"": f.role, statusSuffix: clusterconfig.StatusRole} {
		b := &rbacv1.ClusterRoleBinding{ObjectMeta: account, Subjects: subjects, RoleRef: role(name)}
		b.Name += suffix
		if _, err := client.RbacV1().ClusterRoleBindings().Create(ctx, b, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("binding the role %s: %w", name, err)
		}
	}
	return nil
}

// removeEnded removes the accounts whose tokens have ended, with their bindings.
func removeEnded(ctx context.Context, client kubernetes.Interface, now time.Time) error {
	all, err := client.CoreV1().ServiceAccounts(consoleNamespace).List(ctx, metav1.ListOptions{LabelSelector: consoleLabel})
	if err != nil {
		return fmt.Errorf("listing the accounts of tokens: %w", err)
	}
	for i := range all.Items {
		ends, err := time.Parse(time.RFC3339, all.Items[i].Annotations[consoleEnds])
		if err != nil || now.Before(ends) {
			continue
		}
		if err := removeAccount(ctx, client, all.Items[i].ObjectMeta); err != nil {
			return err
		}
	}
	return nil
}

// removeAccount removes an account, which ends its token, and its bindings.
func removeAccount(ctx context.Context, client kubernetes.Interface, account metav1.ObjectMeta) error {
	var errs []error
	if namespace := account.Annotations[consoleRoleNamespace]; namespace != "" {
		errs = append(errs, client.RbacV1().RoleBindings(namespace).Delete(ctx, account.Name, metav1.DeleteOptions{}))
	} else {
		errs = append(errs, client.RbacV1().ClusterRoleBindings().Delete(ctx, account.Name, metav1.DeleteOptions{}),
			client.RbacV1().ClusterRoleBindings().Delete(ctx, account.Name+statusSuffix, metav1.DeleteOptions{}))
	}
	errs = append(errs, client.CoreV1().ServiceAccounts(consoleNamespace).Delete(ctx, account.Name, metav1.DeleteOptions{}))
	for _, err := range errs {
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("removing the account %s of a token: %w", account.Name, err)
		}
	}
	return nil
}
