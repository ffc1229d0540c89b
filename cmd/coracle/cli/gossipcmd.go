// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/config"
)

func (a *App) gossipCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "gossip", GroupID: groupUse, Short: "Rotate the key of the gossip between the cluster's machines",
	}
	rotate := &cobra.Command{
		Use: "rotate-key", Short: "Replace the gossip key on all machines while they run", Args: noArgs,
		Long: `Makes a new key, waits until all running machines have it, switches them to it, and then removes the old one. Run it
on a server. If it is interrupted, all machines can still communicate, and running it again completes the rotation.
A machine that is off meanwhile asks a server for the new key when it starts.`,
	}
	flags := addLocations(rotate)
	rotate.RunE = a.runTool(flags, func(cmd *cobra.Command, t *config.Tool, _ []string) error {
		return a.withClient(cmd.Context(), t, func(ctx context.Context, c kubernetes.Interface) error {
			err := a.RotateGossipKey(ctx, c, gossipMembers(t), func(text string) { fmt.Fprintln(cmd.OutOrStdout(), text) })
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), "The key is replaced.")
			}
			return err
		})
	})
	return commandGroup(cmd, rotate)
}
