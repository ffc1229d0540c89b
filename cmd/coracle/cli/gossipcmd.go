// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
)

func gossipCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "gossip", GroupID: groupUse, Short: "Rotate the key of the gossip between the cluster's machines",
	}, newToolCommand(a, &cobra.Command{
		Use: "rotate-key", Short: "Replace the gossip key on all machines while they run", Args: noArgs,
		Long: `Makes a new key, waits until all running machines have it, switches them to it, and then removes the old one. Run it
on a server. If it is interrupted, all machines can still communicate, and running it again completes the rotation.
A machine that is off meanwhile asks a server for the new key when it starts.`,
	}).runsWithClient(func(ctx context.Context, c kubernetes.Interface, inv *invocation) error {
		err := a.RotateGossipKey(ctx, c, gossipMembers(inv.tool), func(text string) { inv.Println(text) })
		if err == nil {
			inv.Println("The key is replaced.")
		}
		return err
	}))
}
