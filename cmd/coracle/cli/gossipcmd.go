// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

func (a *App) gossipCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "gossip", GroupID: groupUse, Short: "Rotate the key with which the cluster's machines talk about one another",
	}
	rotate := &cobra.Command{
		Use: "rotate-key", Short: "Replace the gossip key on all machines while they run", Args: noArgs,
		Long: `Makes a new key, waits until all machines that are on know it, has them use it, and has them forget the old one. To be
run on a server. If it is interrupted, all machines still understand one another, and running it again brings it to an
end. A machine that is off meanwhile asks a server for the new key when it is on again.`,
	}
	flags := addLocations(rotate)
	rotate.RunE = a.runTool(flags, func(cmd *cobra.Command, t *config.Tool, _ []string) error {
		members := func(ctx context.Context) ([]status.Member, error) {
			r, err := status.NewClient(t.Paths.AdminSocket).Status(ctx)
			if err != nil {
				return nil, err
			}
			return r.Members, nil
		}
		return a.withClient(cmd.Context(), t, func(ctx context.Context, c kubernetes.Interface) error {
			err := a.RotateGossipKey(ctx, c, members, func(text string) { fmt.Fprintln(cmd.OutOrStdout(), text) })
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), "The key is replaced.")
			}
			return err
		})
	})
	return holder(cmd, rotate)
}
