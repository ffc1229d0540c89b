// SPDX-License-Identifier: Apache-2.0

// Package revocation revokes a node whose machine was stolen: the servers refuse its certificates, the tokens and the
// gossip key that it knows are replaced, and its Node and pods are deleted.
//
// It owns the order of these steps. The list of revoked nodes belongs to server/secrets, and each server's refusal to
// nodecreds.Guard. It never revokes a server, which has the authorities' keys.
package revocation

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/gossipmember"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/secrets"
)

const (
	// podsPoll is the pause between two lists of the node's pods: the scheduler may have chosen the node for others
	// meanwhile. podsTries is how many lists there are at most.
	podsPoll  = 500 * time.Millisecond
	podsTries = 20
)

// Revocation describes what is revoked, and how. All fields are required, except Deleted.
type Revocation struct {
	Node string
	// Deleted says that the node may be gone from the cluster already.
	Deleted bool
	// KV is the store. ServerDir is the folder of one server. Servers are the ids of all.
	KV        clientv3.KV
	ServerDir string
	Servers   []string
	// Timeout is how long the servers may take to say that they refuse the node.
	Timeout time.Duration
	Client  kubernetes.Interface
	// Members returns the machines of the cluster with the generations of their gossip keys.
	Members func(context.Context) ([]status.Member, error)
	// Progress is called at each step.
	Progress func(string)
	Now      func() time.Time
}

// Run revokes the node. It may be interrupted at any point and started again, and then continues. A node that is there
// is always revoked from the beginning: a new machine may have joined since the interruption. The error names the
// servers that have not said that they refuse the node; everything else is done then.
func (r Revocation) Run(ctx context.Context) error {
	present, err := r.check(ctx)
	if err != nil {
		return err
	}
	state, err := secrets.ReadRevocation(ctx, r.KV, r.ServerDir, r.Node)
	if err != nil {
		return err
	}
	switch {
	case !present && state.Unfinished:
		r.Progress("completing an interrupted revocation of " + r.Node)
	case !present && !r.Deleted && state.Times == 0:
		return fmt.Errorf("there is no node %q. Nothing was changed. If its Node was deleted already, give --deleted; there are: coracle "+
			"kubectl get nodes", r.Node)
	case !present && !r.Deleted:
		r.Progress(r.Node + " was revoked before, and no node has that name")
		return r.await(ctx, state.Generation)
	default:
		// Before the record: who joins by one of them after this gets certificates that the record refuses.
		if err := r.deleteTokens(ctx); err != nil {
			return err
		}
		if state, err = secrets.RevokeNode(ctx, r.KV, r.ServerDir, r.Node, r.Now()); err != nil {
			return err
		}
	}
	behind := r.await(ctx, state.Generation)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if behind == nil {
		r.Progress("all servers refuse the certificates of " + r.Node + ", and the agent token is replaced")
	}
	if err := r.deleteObjects(ctx); err != nil {
		return fmt.Errorf("%w. Its certificates are refused already; run the command again to complete the revocation", err)
	}
	if err := r.rotateGossipKey(ctx); err != nil {
		return fmt.Errorf("%s is refused everywhere, but knows the gossip key still: %w. Run the command again to complete the "+
			"revocation", r.Node, err)
	}
	if err := secrets.FinishRevocation(ctx, r.KV, r.ServerDir, r.Node); err != nil {
		return err
	}
	return behind
}

// check refuses servers and invalid names. present says that a node of the name is there, or has joined.
func (r Revocation) check(ctx context.Context) (present bool, err error) {
	if len(validation.IsDNS1123Subdomain(r.Node)) > 0 {
		return false, fmt.Errorf("%q cannot be a node's name. Nothing was changed. There are: coracle kubectl get nodes", r.Node)
	}
	node, err := r.Client.CoreV1().Nodes().Get(ctx, r.Node, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("reading the node: %w", err)
	}
	present = err == nil
	server, err := roster.NamesServer(ctx, r.KV, r.Servers, r.Node)
	if err != nil {
		return false, err
	}
	if server || present && roster.IsServer(node) {
		return false, fmt.Errorf("%s is a server, or its own node. A server has the keys of all authorities, so refusing its certificates "+
			"would keep nobody out. Nothing was changed. docs/operations/stolen.md says what to do about a stolen server", r.Node)
	}
	_, err = r.Client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, r.Node+roster.RegistrationSuffix, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("reading whether the node has joined: %w", err)
	}
	return present || err == nil, nil
}

// deleteTokens deletes all tokens that expire: the machine may have one of them.
func (r Revocation) deleteTokens(ctx context.Context) error {
	all, err := token.List(ctx, r.Client)
	if err != nil {
		return err
	}
	for _, t := range all {
		if err := token.Delete(ctx, r.Client, t.ID); err != nil {
			return fmt.Errorf("%w. Nothing else was changed; run the command again", err)
		}
		r.Progress("the token " + t.ID + " (coracle token create) is deleted, since the machine may know it")
	}
	return nil
}

// await waits until all servers refuse the node. The error names those that have not said so.
func (r Revocation) await(ctx context.Context, generation uint64) error {
	behind, err := secrets.AwaitServers(ctx, r.KV, r.Servers, generation, r.Timeout)
	if err == nil && len(behind) > 0 {
		err = fmt.Errorf("these servers have not said within %s that they refuse %s: %s. A server that is off refuses it before it serves "+
			"again. One that runs and reaches no leader may still let it read what that server knows: stop coracle there. Run the command "+
			"again to ask once more", r.Timeout, r.Node, strings.Join(behind, ", "))
	}
	return err
}

// deleteObjects deletes the Node, its registration and its pods. It reports the Secrets that the pods had.
func (r Revocation) deleteObjects(ctx context.Context) error {
	core := r.Client.CoreV1()
	if err := core.Nodes().Delete(ctx, r.Node, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting the node: %w", err)
	}
	err := core.Secrets(metav1.NamespaceSystem).Delete(ctx, r.Node+roster.RegistrationSuffix, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting the record that the node has joined: %w", err)
	}
	known, deleted := map[string]bool{}, 0
	for try := 0; ; try++ {
		pods, err := r.pods(ctx)
		if err != nil {
			return err
		}
		if len(pods) == 0 {
			break
		}
		if try == podsTries {
			return fmt.Errorf("%d pods of the node are not gone: coracle kubectl get pods -A --field-selector spec.nodeName=%s", len(pods),
				r.Node)
		}
		for _, p := range pods {
			podutil.VisitPodSecretNames(p, func(name string) bool {
				known[p.Namespace+"/"+name] = true
				return true
			})
			o := metav1.DeleteOptions{GracePeriodSeconds: new(int64(0)), Preconditions: metav1.NewUIDPreconditions(string(p.UID))}
			err := core.Pods(p.Namespace).Delete(ctx, p.Name, o)
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return fmt.Errorf("deleting the pod %s/%s: %w", p.Namespace, p.Name, err)
			}
			deleted++
		}
		timers.Sleep(ctx, podsPoll)
	}
	r.Progress(fmt.Sprintf("its Node and %d pods are deleted", deleted))
	if len(known) > 0 {
		r.Progress("its pods had these Secrets, which stay as they are: replace what is in them: " +
			strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
	return nil
}

// pods returns the node's pods that are not deleted.
func (r Revocation) pods(ctx context.Context) ([]*corev1.Pod, error) {
	all, err := r.Client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", r.Node).String(),
	})
	if err != nil {
		return nil, fmt.Errorf("listing the node's pods: %w", err)
	}
	var out []*corev1.Pod
	for i := range all.Items {
		if p := &all.Items[i]; p.Spec.NodeName == r.Node && !(p.DeletionTimestamp != nil && isZero(p.DeletionGracePeriodSeconds)) {
			out = append(out, p)
		}
	}
	return out, nil
}

// isZero says whether a pod was deleted without a grace period. Only a finalizer keeps its object then.
func isZero(grace *int64) bool { return grace != nil && *grace == 0 }

// rotateGossipKey replaces the gossip key, and does not wait for the revoked node.
func (r Revocation) rotateGossipKey(ctx context.Context) error {
	members := func(ctx context.Context) ([]status.Member, error) {
		all, err := r.Members(ctx)
		return slices.DeleteFunc(all, func(m status.Member) bool { return m.Name == r.Node }), err
	}
	return gossipmember.Rotation{Client: r.Client, Members: members, Progress: r.Progress}.Run(ctx)
}
