// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

func vipCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "vip", GroupID: groupUse, Short: "Show, set or remove the cluster's virtual address",
		Long: `A virtual address belongs to the server that leads, and moves when that fails. "coracle server --vip" sets it when a
cluster has none yet. Later it is a setting of the whole cluster, and these commands change it while the cluster runs.`,
	}
	show := newToolCommand(a, &cobra.Command{
		Use: "show", Short: "Print the cluster's virtual address", Args: noArgs,
	}).runsWithClient(func(ctx context.Context, c kubernetes.Interface, inv *invocation) error {
		m, err := c.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, clusterconfig.VIPConfigMap, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("reading the virtual address: %w", err)
		}
		inv.Println(cmp.Or(m.Data[clusterconfig.VIPData], "none"))
		return nil
	})
	return commandGroup(cmd, show, vipSetCommand(a), vipRemoveCommand(a))
}

func vipSetCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "set ADDRESS[,ADDRESS]", Short: "Give the cluster a virtual address, or another one", Args: cobra.ExactArgs(1),
		Long: `Gives the cluster a virtual address, or another one in place of the one that it has; two, separated by a comma, if they
are of different families. Run it on a server: it first asks the network there whether the address is in use. All
servers apply it within seconds, also to their certificates and kubeconfigs. A server that is started with another --vip
logs a warning and uses the cluster's address: remove the flag there.`,
	})
	on := cmd.Flags().String("interface", "", "Interface on which to ask; by default the one whose network contains the address")
	return cmd.runsWithClient(func(ctx context.Context, c kubernetes.Interface, inv *invocation) error {
		text, err := a.CheckVIPs(ctx, c, inv.args[0], *on)
		if err != nil {
			return fmt.Errorf("%w. Nothing was changed", err)
		}
		if err := putVIPs(ctx, c, text); err != nil {
			return err
		}
		inv.Printf("The cluster's virtual address is %s. Where servers are started with --vip, set it to the same value or remove it.\n", text)
		return nil
	})
}

func vipRemoveCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "remove", Short: "Remove the cluster's virtual address", Args: noArgs,
		Long: `Removes the cluster's virtual address: no server announces it any more. A server that is started with --vip
after that logs a warning and announces none: remove the flag there.`,
	}).runsWithClient(func(ctx context.Context, c kubernetes.Interface, inv *invocation) error {
		if err := putVIPs(ctx, c, ""); err != nil {
			return err
		}
		inv.Println("The cluster no longer has a virtual address. Remove --vip where servers are started with it.")
		return nil
	})
}

// putVIPs writes the cluster's virtual addresses. It does not delete the ConfigMap when there are none: a server with
// --vip would make it again.
func putVIPs(ctx context.Context, c kubernetes.Interface, text string) error {
	maps := c.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	m, err := maps.Get(ctx, clusterconfig.VIPConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: clusterconfig.VIPConfigMap, Namespace: metav1.NamespaceSystem,
				Labels: map[string]string{"app.kubernetes.io/managed-by": "coracle"}},
			Data: map[string]string{clusterconfig.VIPData: text},
		}, metav1.CreateOptions{})
	case err == nil:
		m.Data = map[string]string{clusterconfig.VIPData: text}
		_, err = maps.Update(ctx, m, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("writing the virtual address: %w", err)
	}
	return nil
}
