// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

// RevokeRequest names a node to revoke, and what that needs of this machine's server.
type RevokeRequest struct {
	Node string
	// Deleted says that the node may be gone from the cluster already.
	Deleted bool
	// ServerDir is the server's folder.
	ServerDir string
	Store     *clientv3.Client
	Client    kubernetes.Interface
	// Members returns the members of the gossip that the server knows.
	Members func(context.Context) ([]status.Member, error)
	// Progress is called with each step.
	Progress func(string)
}

func (a *App) nodeRevokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke NAME", Short: "Shut out a node whose machine was stolen", Args: cobra.ExactArgs(1),
		Long: `All servers refuse the certificates of the node at once, also on connections that are open. The agent token and the gossip key are replaced,
tokens of "coracle token create" are deleted, and so are the Node and its pods. Other nodes and their pods run on. A new machine
may join later under the same name, with a new token.

The command waits for all servers, and names those that do not answer. If it is interrupted, or a step fails, run it again: it
continues. Run it on a server. A server's own node cannot be revoked.

What the machine has read stays known: replace the Secrets that its pods had, the logins of its registries, and other passwords on it.`,
	}
	flags := addLocations(cmd)
	deleted := cmd.Flags().Bool("deleted", false, "Revoke the name although the cluster has no such node: its Node was deleted before")
	cmd.RunE = a.runTool(flags, func(cmd *cobra.Command, t *config.Tool, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		r := RevokeRequest{
			Node: args[0], Deleted: *deleted, ServerDir: t.Paths.ServerDir, Members: gossipMembers(t),
			Progress: func(text string) { fmt.Fprintln(cmd.OutOrStdout(), text) },
		}
		err := a.withStore(ctx, t, func(ctx context.Context, store *clientv3.Client) error {
			return a.withClient(ctx, t, func(ctx context.Context, c kubernetes.Interface) error {
				r.Store, r.Client = store, c
				return a.RevokeNode(ctx, r)
			})
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is revoked. Machines join with the new token from now on: coracle token print.\n"+
			"Look for nodes that you do not know, which the machine may have added by its token before: coracle kubectl get nodes\n", args[0])
		return nil
	})
	return cmd
}

// gossipMembers returns a function that asks this machine's server for the members of the gossip.
func gossipMembers(t *config.Tool) func(context.Context) ([]status.Member, error) {
	return func(ctx context.Context) ([]status.Member, error) {
		r, err := status.NewClient(t.Paths.AdminSocket).Status(ctx)
		if err != nil {
			return nil, err
		}
		return r.Members, nil
	}
}
