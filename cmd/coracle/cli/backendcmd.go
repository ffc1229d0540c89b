// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	nodeutil "k8s.io/kubernetes/pkg/util/node"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

const (
	// backendWait is how long running nodes may take to change, and backendPoll how often they are checked meanwhile.
	backendWait = time.Minute
	backendPoll = 300 * time.Millisecond
	// apartShown is how many pairs of nodes that would not reach one another are named.
	apartShown = 3
)

func backendCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "network-backend", GroupID: groupUse, Short: "Show or change how packets reach pods of other nodes",
		Long: `"coracle server --network-backend" sets it when a cluster is created. Later it is a setting of the whole cluster, and this command changes it while the cluster runs.`,
	}
	show := newToolCommand(a, &cobra.Command{
		Use: "show", Short: "Print the cluster's network back end", Args: noArgs,
	}).runsWithClient(func(ctx context.Context, c kubernetes.Interface, inv *invocation) error {
		name, err := shownBackend(ctx, c)
		if err == nil {
			inv.Println(name)
		}
		return err
	})
	return commandGroup(cmd, show, backendSetCommand(a))
}

func backendSetCommand(a *App) *cobra.Command {
	names := clusterconfig.RunningBackends()
	return newToolCommand(a, &cobra.Command{
		Use: "set NAME", Short: "Change the cluster's network back end", Args: cobra.ExactArgs(1), ValidArgs: names,
		Long: `Changes all nodes of the cluster to another network back end: ` + strings.Join(names, ", ") +
			`. Pods keep running, and keep their addresses. Until the last node has
changed, within seconds, pods of different nodes do not reach one another. The command waits until all nodes that run have changed; one that does not run
changes when it starts. From then on, a server that is started with another --network-backend refuses to start: remove the flag there.`,
	}).runs(func(inv *invocation) error {
		name := inv.args[0]
		if !slices.Contains(names, name) {
			return fmt.Errorf("a cluster cannot change to the network back end %q; it can to %s. Nothing was changed", name,
				strings.Join(names, ", "))
		}
		return withClient(inv.Context(), inv.tool, func(ctx context.Context, c kubernetes.Interface) error {
			before, err := setBackend(ctx, c, name)
			if err != nil {
				return fmt.Errorf("%w. Nothing was changed", err)
			}
			off, err := waitForBackend(ctx, c, name, backendWait)
			if errors.Is(err, errLate) && before != name && slices.Contains(names, before) {
				err = fmt.Errorf("%w. To have all nodes change back: coracle network-backend set %s", err, before)
			}
			if err != nil {
				return err
			}
			inv.Printf("All running nodes use %s. Where servers are started with --network-backend, set it to the same value or remove it.\n", name)
			if len(off) > 0 {
				inv.Printf("These nodes do not run, and change when they start: %s\n", strings.Join(off, ", "))
			}
			return nil
		})
	})
}

func presentBackend(ctx context.Context, c kubernetes.Interface) (*corev1.ConfigMap, error) {
	m, err := c.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, clusterconfig.BackendConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("there is no ConfigMap %s/%s: a server creates it at its start, unless its version is older than this command's. Update and restart a server",
			metav1.NamespaceSystem, clusterconfig.BackendConfigMap)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the network back end: %w", err)
	}
	return m, nil
}

// shownBackend returns the cluster's network back end. It returns an error where the ConfigMap holds a value that no
// node accepts.
func shownBackend(ctx context.Context, c kubernetes.Interface) (string, error) {
	m, err := presentBackend(ctx, c)
	if err != nil {
		return "", err
	}
	name := m.Data[clusterconfig.BackendData]
	if !slices.Contains(clusterconfig.NetworkBackends, name) {
		return "", fmt.Errorf("the ConfigMap %s/%s says %q, which is no network back end: nodes keep their present one. Correct it with: "+
			"coracle network-backend set NAME",
			metav1.NamespaceSystem, clusterconfig.BackendConfigMap, name)
	}
	return name, nil
}

// setBackend writes the cluster's network back end, if all nodes can change to it, and returns the previous one.
func setBackend(ctx context.Context, c kubernetes.Interface, name string) (before string, err error) {
	m, err := presentBackend(ctx, c)
	if err != nil {
		return "", err
	}
	switch before = m.Data[clusterconfig.BackendData]; before {
	case name:
		return before, nil
	case clusterconfig.NetworkNone:
		return before, errors.New("this cluster cannot change: its network back end is none, for another network plugin. If that was written by hand, " +
			"restart coracle on a server: it restores the previous value")
	}
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return before, fmt.Errorf("listing the nodes: %w", err)
	}
	if err := allCanChange(nodes.Items, name); err != nil {
		return before, err
	}
	if err := portFree(ctx, c, name); err != nil {
		return before, err
	}
	m.Data = map[string]string{clusterconfig.BackendData: name}
	_, err = c.CoreV1().ConfigMaps(metav1.NamespaceSystem).Update(ctx, m, metav1.UpdateOptions{})
	switch {
	case apierrors.IsConflict(err):
		return before,
			errors.New("another client changed the network back end at the same moment: see coracle network-backend show, and try again")
	case err != nil:
		return before, fmt.Errorf("writing the network back end: %w", err)
	}
	return before, nil
}

// allCanChange returns an error when a node cannot change its back end while it runs, or when nodes would not reach one
// another with the new one, as far as their Nodes show.
func allCanChange(nodes []corev1.Node, name string) error {
	var old []string
	var all []*corev1.Node
	for i := range nodes {
		if nodes[i].Annotations[clusterconfig.BackendAnnotation] == "" {
			old = append(old, nodes[i].Name)
		}
		all = append(all, &nodes[i])
	}
	if len(old) > 0 {
		return fmt.Errorf("these nodes do not report that they can change while they run: %s. Their coracle is older, or has never run for "+
			"long enough: update and start it there, or delete the Nodes of machines that no longer exist",
			strings.Join(old, ", "))
	}
	if name != clusterconfig.NetworkHostGateway {
		return nil
	}
	apart := cni.UnreachablePairs(all)
	if len(apart) == 0 {
		return nil
	}
	more := ""
	if n := len(apart) - apartShown; n > 0 {
		apart, more = apart[:apartShown], fmt.Sprintf("; and %d more", n)
	}
	return fmt.Errorf("nodes would not reach one another's pods with %s: %s%s. Delete the Nodes of machines that no longer exist", name,
		strings.Join(apart, "; "), more)
}

// portFree returns an error when the back end's port is a pod's host port or a Service's node port: packets from other
// nodes would go there. New pods do not get the port of the present back end (cni).
func portFree(ctx context.Context, c kubernetes.Interface, name string) error {
	port := clusterconfig.TunnelPort(name)
	if port == 0 {
		return nil
	}
	pods, err := c.CoreV1().Pods(metav1.NamespaceAll).List(ctx,
		metav1.ListOptions{FieldSelector: "status.phase!=Succeeded,status.phase!=Failed"})
	if err != nil {
		return fmt.Errorf("listing pods that have the port %d: %w", port, err)
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		for _, container := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
			if slices.ContainsFunc(container.Ports, func(has corev1.ContainerPort) bool {
				return has.Protocol == corev1.ProtocolUDP && int(has.HostPort) == port
			}) {
				return fmt.Errorf("the pod %s/%s has the host port %d by UDP, which %s needs", p.Namespace, p.Name, port, name)
			}
		}
	}
	services, err := c.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing Services that have the port %d: %w", port, err)
	}
	for i := range services.Items {
		s := &services.Items[i]
		if slices.ContainsFunc(s.Spec.Ports, func(has corev1.ServicePort) bool {
			return has.Protocol == corev1.ProtocolUDP && int(has.NodePort) == port
		}) {
			return fmt.Errorf("the Service %s/%s has the node port %d by UDP, which %s needs", s.Namespace, s.Name, port, name)
		}
	}
	return nil
}

// errLate says that running nodes have not changed in time.
var errLate = errors.New("they keep trying; coracle status on each of them shows the reason")

// waitForBackend waits until all running nodes use the back end. It returns the nodes that do not run and have another
// one. It returns an error when the cluster's back end was changed to another one meanwhile.
func waitForBackend(ctx context.Context, c kubernetes.Interface, name string, most time.Duration) (off []string, err error) {
	var late []string
	var asking, replaced error
	err = wait.PollUntilContextTimeout(ctx, backendPoll, most, true, func(ctx context.Context) (bool, error) {
		m, err := presentBackend(ctx, c)
		if err == nil && m.Data[clusterconfig.BackendData] != name {
			replaced = fmt.Errorf("meanwhile another client changed the cluster's network back end to %q, which is now in effect",
				m.Data[clusterconfig.BackendData])
			return false, replaced
		}
		var nodes *corev1.NodeList
		if err == nil {
			nodes, err = c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		}
		switch {
		case err == nil:
			asking = nil
		case ctx.Err() == nil || len(late) == 0: // otherwise the end of the wait has cancelled the request
			asking = err
		}
		if err != nil {
			return false, nil // the API may be unavailable for a moment
		}
		late, off = nil, nil
		for i := range nodes.Items {
			switch n := &nodes.Items[i]; {
			case n.Annotations[clusterconfig.BackendAnnotation] == name:
			case nodeutil.IsNodeReady(n):
				late = append(late, n.Name)
			default:
				off = append(off, n.Name)
			}
		}
		return len(late) == 0, nil
	})
	switch {
	case err == nil:
		return off, nil
	case replaced != nil:
		return nil, replaced
	case asking == nil && len(late) > 0:
		return nil, fmt.Errorf("the cluster's network back end is %s now, and these nodes have not changed to it yet: %s. Until they "+
			"have, their pods and those of other nodes may not reach one another; %w",
			name, strings.Join(late, ", "), errLate)
	}
	return nil, fmt.Errorf("the cluster's network back end is %s now; which nodes have changed to it is unknown: %w", name,
		cmp.Or(asking, err))
}
