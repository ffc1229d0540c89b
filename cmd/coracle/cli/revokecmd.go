// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

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

func nodeRevokeCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "revoke NAME", Short: "Shut out a node whose machine was stolen", Args: cobra.ExactArgs(1),
		Long: `All servers refuse the certificates of the node at once, also on connections that are open. The agent token and the gossip key are replaced,
tokens of "coracle token create" are deleted, and so are the Node and its pods. Other nodes and their pods run on. A new machine
may join later under the same name, with a new token.

The command waits for all servers, and names those that do not answer. If it is interrupted, or a step fails, run it again: it
continues. Run it on a server. A server's own node cannot be revoked.

What the machine has read stays known: replace the Secrets that its pods had, the logins of its registries, and other passwords on it.`,
	})
	deleted := cmd.Flags().Bool("deleted", false, "Revoke the name although the cluster has no such node: its Node was deleted before")
	return cmd.runs(func(inv *invocation) error {
		ctx, stop := untilInterrupted(inv.Context())
		defer stop()
		r := RevokeRequest{
			Node: inv.args[0], Deleted: *deleted, ServerDir: inv.tool.Paths.ServerDir, Members: gossipMembers(inv.tool),
			Progress: func(text string) { inv.Println(text) },
		}
		err := withStore(ctx, inv.tool, func(ctx context.Context, store *clientv3.Client) error {
			return withClient(ctx, inv.tool, func(ctx context.Context, c kubernetes.Interface) error {
				r.Store, r.Client = store, c
				return a.RevokeNode(ctx, r)
			})
		})
		if err != nil {
			return err
		}
		inv.Printf("%s is revoked. Machines join with the new token from now on: coracle token print.\n"+
			"Look for nodes that you do not know, which the machine may have added by its token before: coracle kubectl get nodes\n", inv.args[0])
		return nil
	})
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
