// SPDX-License-Identifier: Apache-2.0

package gossipmember

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// rotationPoll is how often a rotation checks which members have the keys. nodesPoll is how often it lists the
	// nodes.
	rotationPoll, nodesPoll = 500 * time.Millisecond, 5 * time.Second
	// rotationTimeout is how long a rotation waits for nodes that do not have the keys yet. A node requests them
	// within seconds, and once a minute if it has contact with no member.
	rotationTimeout = 3 * time.Minute
	// nodelessTimeout replaces rotationTimeout for members without a Node: machines that are about to register, and
	// servers without a node.
	nodelessTimeout = 15 * time.Second
)

// Rotation replaces the gossip key.
type Rotation struct {
	Client kubernetes.Interface
	// Members returns the machines of the cluster with the generations of their keys, as a running server knows them.
	Members func(context.Context) ([]status.Member, error)
	// Progress is called at each step.
	Progress func(string)
}

// Run makes a new key and distributes it to all members. Then it makes all members use it, and then remove the old key.
// Each step waits for all members that are alive and have a Node. A member that is off in the meantime requests the key
// from a server when it returns. Run returns an error when a member takes too long. It may be interrupted at any point
// and started again: no step removes a key that such a member still sends with. If two rotations run concurrently, one
// returns an error before it changes what the other has done.
func (r Rotation) Run(ctx context.Context) error {
	now, err := r.read(ctx)
	if err != nil {
		return err
	}
	steps := []struct {
		text string
		next func(clusterconfig.GossipKeys) clusterconfig.GossipKeys
	}{
		{"distributing the new key to all machines", clusterconfig.GossipKeys.WithNew},
		{"switching all machines to the new key", clusterconfig.GossipKeys.UsingLast},
		{"removing the old key from all machines", clusterconfig.GossipKeys.OnlyFirst},
	}
	if len(now.Keys) > 1 {
		r.Progress("completing an interrupted rotation first")
		if err := r.wait(ctx, now.Generation); err != nil {
			return err
		}
		steps = append(steps[2:3:3], steps...)
	}
	for _, step := range steps {
		r.Progress(step.text)
		if now, err = r.change(ctx, now.Generation, step.next); err != nil {
			return err
		}
		if err := r.wait(ctx, now.Generation); err != nil {
			return err
		}
	}
	return nil
}

func (r Rotation) read(ctx context.Context) (clusterconfig.GossipKeys, error) {
	s, err := r.Client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, GossipSecret, metav1.GetOptions{})
	if err != nil {
		return clusterconfig.GossipKeys{}, fmt.Errorf("reading the gossip keys: %w", err)
	}
	return keysIn(s)
}

// change replaces the keys in the API, if they have this generation.
func (r Rotation) change(ctx context.Context, generation uint64,
	next func(clusterconfig.GossipKeys) clusterconfig.GossipKeys) (out clusterconfig.GossipKeys, _ error) {
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		secrets := r.Client.CoreV1().Secrets(metav1.NamespaceSystem)
		s, err := secrets.Get(ctx, GossipSecret, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("reading the gossip keys: %w", err)
		}
		keys, err := keysIn(s)
		if err != nil {
			return err
		}
		if keys.Generation != generation {
			return fmt.Errorf("another command changed the gossip keys meanwhile, probably another rotation. This one stops; all "+
				"machines can still communicate. "+
				"When the other one has ended, run this again if the key is to be replaced once more (the keys' generation is %d, "+
				"expected was %d)", keys.Generation, generation)
		}
		out = next(keys)
		if err := putKeys(s, out); err != nil {
			return err
		}
		_, err = secrets.Update(ctx, s, metav1.UpdateOptions{})
		return err
	})
	return out, err
}

// wait returns when all members that are alive and have a Node have the keys of a generation.
func (r Rotation) wait(ctx context.Context, generation uint64) error {
	last, began := "", time.Now()
	var nodes map[string]bool
	var listed time.Time
	for {
		members, err := r.Members(ctx)
		if err != nil {
			return err
		}
		behind, alive := membersBehind(members, generation)
		waited := time.Since(began)
		var nodeless []string
		if len(behind) > 0 {
			if nodes == nil || time.Since(listed) >= nodesPoll {
				if nodes, err = r.nodes(ctx); err != nil {
					return err
				}
				listed = time.Now()
			}
			if waited >= nodelessTimeout {
				all := behind
				behind = slices.DeleteFunc(slices.Clone(all), func(name string) bool { return !nodes[name] })
				nodeless = slices.DeleteFunc(slices.Clone(all), func(name string) bool { return nodes[name] })
			}
		}
		text := strings.Join(behind, ", ")
		switch {
		case alive > 0 && len(behind) == 0:
			if len(nodeless) > 0 {
				r.Progress("  not waited for, since the cluster has no Node of that name: " + strings.Join(nodeless,
					", "))
			}
			return nil
		case waited >= rotationTimeout:
			return fmt.Errorf("these machines are alive and did not fetch the gossip key within %s: %s. The rotation stops here, and "+
				"all machines can still communicate. "+
				"Check on them why no server can be reached (coracle status), stop coracle there, or delete the node if the machine is no longer part of the "+
				"cluster "+
				"(kubectl delete node NAME); then run the rotation again, and it continues", rotationTimeout, text)
		case text != last:
			last = text
			r.Progress(fmt.Sprintf("  %d of %d have the keys; waiting for %s", alive-len(behind)-len(nodeless), alive,
				text))
		}
		if !timers.Sleep(ctx, rotationPoll) {
			return fmt.Errorf("the rotation was interrupted; all machines can still communicate. Run it again to complete it: %w",
				ctx.Err())
		}
	}
}

// membersBehind returns the names of the members that are alive and have older keys, and the number of all that are
// alive.
func membersBehind(members []status.Member, generation uint64) (behind []string, alive int) {
	for _, m := range members {
		if m.State != "alive" {
			continue
		}
		alive++
		if m.KeyGeneration < generation {
			behind = append(behind, m.Name)
		}
	}
	return behind, alive
}

// nodes returns the names of the cluster's Nodes.
func (r Rotation) nodes(ctx context.Context) (map[string]bool, error) {
	all, err := r.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing the nodes: %w", err)
	}
	out := map[string]bool{}
	for i := range all.Items {
		out[all.Items[i].Name] = true
	}
	return out, nil
}
