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
	"github.com/coracle-k8s/coracle/internal/config"
)

func (a *App) vipCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "vip", GroupID: groupUse, Short: "Show, set or remove the cluster's virtual address",
		Long: `A virtual address leads to whichever server of the cluster is alive. "coracle server --vip" sets it when a cluster has none yet; from then
on it is the cluster's, and is changed here while the cluster runs.`,
	}
	show := &cobra.Command{Use: "show", Short: "Print the cluster's virtual address", Args: noArgs}
	flags := addLocations(show)
	show.RunE = a.runTool(flags, func(cmd *cobra.Command, t *config.Tool, _ []string) error {
		return a.withClient(cmd.Context(), t, func(ctx context.Context, c kubernetes.Interface) error {
			m, err := c.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, clusterconfig.VIPConfigMap, metav1.GetOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("asking for the virtual address: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), cmp.Or(m.Data[clusterconfig.VIPData], "none"))
			return nil
		})
	})
	return holder(cmd, show, a.vipSetCommand(), a.vipRemoveCommand())
}

func (a *App) vipSetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set ADDRESS[,ADDRESS]", Short: "Give the cluster a virtual address, or another one", Args: cobra.ExactArgs(1),
		Long: `Gives the cluster a virtual address, or another one in place of the one that it has; two with a comma in between if they are of different
families. To be run on a server: it first asks the network there whether the address is in use. All servers take it over within seconds, with their
certificates and kubeconfigs. A server that is started with --vip and another address refuses to start: take it out there.`,
	}
	flags := addLocations(cmd)
	on := cmd.Flags().String("interface", "", "Interface on which to ask; left out, the one whose network holds the address")
	cmd.RunE = a.runTool(flags, func(cmd *cobra.Command, t *config.Tool, args []string) error {
		return a.withClient(cmd.Context(), t, func(ctx context.Context, c kubernetes.Interface) error {
			text, err := a.CheckVIPs(ctx, c, args[0], *on)
			if err != nil {
				return fmt.Errorf("%w. Nothing was changed", err)
			}
			if err := putVIPs(ctx, c, text); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(),
				"The cluster's virtual address is %s. Servers that are started with --vip need the same, or none.\n", text)
			return nil
		})
	})
	return cmd
}

func (a *App) vipRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove", Short: "Take the virtual address from the cluster", Args: noArgs,
		Long: `Takes the virtual address from the cluster: no server answers for it any more. A server that is started with --vip refuses to start from then on:
take it out there.`,
	}
	flags := addLocations(cmd)
	cmd.RunE = a.runTool(flags, func(cmd *cobra.Command, t *config.Tool, _ []string) error {
		return a.withClient(cmd.Context(), t, func(ctx context.Context, c kubernetes.Interface) error {
			if err := putVIPs(ctx, c, ""); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(),
				"The cluster has no virtual address any more. Take --vip out where servers are started with it.")
			return nil
		})
	})
	return cmd
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
