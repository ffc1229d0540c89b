// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

const (
	// leaveGrace is how long the pods of a node that is being removed may take to end, unless a flag says otherwise. It
	// is twice the default of a pod's terminationGracePeriodSeconds.
	leaveGrace = time.Minute
	// leaveRest is how much longer the node may exist after that: its Node has to be deleted, and its server removed
	// from the store.
	leaveRest = 20 * time.Second
	// leavePoll is the time between two checks whether the node still exists.
	leavePoll = 500 * time.Millisecond
)

func nodeCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "node", Aliases: []string{"nodes"}, GroupID: groupUse, Short: "Move or stop the pods of a node, remove a node from the cluster, or revoke a stolen one",
		Long: `drain, remove and revoke are for a server, and for any node of the cluster; stop-pods is for the machine on which it is called.
A machine that leaves the cluster itself uses "coracle leave".
Nodes are listed by "coracle kubectl get nodes".`,
	}, nodeDrainCommand(a), nodeRemoveCommand(a), nodeRevokeCommand(a), nodeStopPodsCommand(a))
}

func nodeDrainCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "drain NAME", Short: "Evict the pods of a node, and keep new ones away until it is uncordoned", Args: cobra.ExactArgs(1),
		Long: `Moves all pods off a node but those of DaemonSets, within what their disruption budgets allow; what they keep in emptyDir
volumes is lost. It is "kubectl drain NAME --ignore-daemonsets --delete-emptydir-data", which takes more arguments.
"coracle kubectl uncordon NAME" allows new pods again.`,
	})
	timeout := cmd.Flags().Duration("timeout", 0, "How long to wait before giving up; 0: as long as it takes")
	return cmd.runs(func(inv *invocation) error {
		drain := []string{"drain", inv.args[0], "--ignore-daemonsets", "--delete-emptydir-data", "--timeout", timeout.String()}
		env, err := kubectl().environ(a.Environ, inv.tool, drain)
		if err != nil {
			return err
		}
		a.Become("kubectl", drain, env)
		return nil
	})
}

func nodeRemoveCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Evict the pods of a node and remove it, and its server if it has one, from " +
			"the cluster", Args: cobra.ExactArgs(1),
		Long: `Keeps new pods away from the node, evicts those that it has, and deletes it when they are gone or their time is up. The node of
a machine that is dead is deleted at once. If the machine is a server, it is removed from the store too; that is refused while the
other servers could not go on without it, and done as soon as they can.

The leading server does all of it: an interruption of this command stops nothing. As long as pods are evicted,
"coracle kubectl annotate node NAME ` + clusterconfig.LeaveAnnotation + `-" takes the order back.`,
	})
	grace := addGrace(cmd.Command)
	return cmd.runs(func(inv *invocation) error {
		if err := checkGrace(*grace); err != nil {
			return usageError{inv.Command, err}
		}
		return withClient(inv.Context(), inv.tool, func(ctx context.Context, c kubernetes.Interface) error {
			if err := requestLeave(ctx, c, inv.args[0], *grace); apierrors.IsNotFound(err) {
				return fmt.Errorf("there is no node %q. Nothing was changed. There are: coracle kubectl get nodes", inv.args[0])
			} else if err != nil {
				return err
			}
			inv.Printf("%s is no node of the cluster any more. If the machine still runs coracle: sudo "+
				"coracle-uninstall there removes it.\n", inv.args[0])
			return nil
		})
	})
}

func addGrace(cmd *cobra.Command) *time.Duration {
	return cmd.Flags().Duration("grace", leaveGrace, "How long the eviction of the node's pods may take; 0s: the node is "+
		"deleted at once")
}

func checkGrace(grace time.Duration) error {
	if grace < 0 || grace > clusterconfig.MaxLeave {
		return fmt.Errorf("--grace is %s: it has to be between 0s and %s", grace, clusterconfig.MaxLeave)
	}
	return nil
}

// requestLeave requests the node's removal and waits until the Node is gone.
func requestLeave(ctx context.Context, c kubernetes.Interface, name string, grace time.Duration) error {
	ctx, stop := untilInterrupted(ctx)
	defer stop()
	annotations := map[string]string{clusterconfig.LeaveAnnotation: grace.String()}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		return err
	}
	n, err := c.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: "coracle"})
	if err != nil {
		return err
	}
	return awaitDeletion(ctx, c, n, grace+leaveRest)
}

// awaitDeletion waits until the Node is gone, or was replaced by another one with the same name.
func awaitDeletion(ctx context.Context, c kubernetes.Interface, n *corev1.Node, atMost time.Duration) error {
	deadline := time.NewTimer(atMost)
	defer deadline.Stop()
	poll := time.NewTicker(leavePoll)
	defer poll.Stop()
	var last error
	for {
		now, err := c.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && now.UID != n.UID {
			return nil
		}
		if err == nil {
			n = now
		}
		last = err
		select {
		case <-ctx.Done():
			return fmt.Errorf("interrupted; the leader continues to remove the node %s", n.Name)
		case <-deadline.C:
			return stillThere(n, last)
		case <-poll.C:
		}
	}
}

// stillThere returns an error that says what the removal of a node waits for.
func stillThere(n *corev1.Node, last error) error {
	switch {
	case last != nil:
		return fmt.Errorf("the removal of the node %s was requested, but its progress cannot be read: %w", n.Name, last)
	case n.DeletionTimestamp == nil:
		return fmt.Errorf("the removal of the node %s was requested, but no server has done it. Is there a leader (coracle "+
			"status)? The removal continues as soon as there is one", n.Name)
	}
	return fmt.Errorf("the node %s is being deleted and waits for %q: a server is removed from the store when the others can continue "+
		"without it. coracle member list shows their state; nothing else needs to be done", n.Name, n.Finalizers)
}
