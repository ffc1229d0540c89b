// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"github.com/coracle-k8s/coracle/internal/cluster"
	"github.com/coracle-k8s/coracle/internal/status"
)

// rotationLook is how often a rotation looks who has the keys.
const rotationLook = 500 * time.Millisecond

// GossipRotation is what replacing the gossip key needs.
type GossipRotation struct {
	Client kubernetes.Interface
	// Members are the machines of the cluster and which keys they have, as a running server knows them.
	Members func(context.Context) ([]status.Member, error)
	// Progress is told of each step.
	Progress func(string)
}

// Run makes a new key, has all members learn it, then use it, then forget the old one. Each step waits for all members that
// are alive; one that is off meanwhile asks a server for the key when it is back. It may be interrupted at any point and
// begun again: no step takes away a key that a member sends with.
func (r GossipRotation) Run(ctx context.Context) error {
	now, err := r.change(ctx, func(k cluster.GossipKeys) (cluster.GossipKeys, error) { return k, nil })
	if err != nil {
		return err
	}
	steps := []struct {
		text string
		next func(cluster.GossipKeys) (cluster.GossipKeys, error)
	}{
		{"all machines learn a new key", cluster.GossipKeys.WithNew},
		{"all machines use the new key", func(k cluster.GossipKeys) (cluster.GossipKeys, error) { return k.UsingLast(), nil }},
		{"all machines forget the old key", func(k cluster.GossipKeys) (cluster.GossipKeys, error) { return k.OnlyFirst(), nil }},
	}
	if len(now.Keys) > 1 {
		r.Progress("a rotation that was interrupted is brought to an end first")
		if err := r.wait(ctx, now.Generation); err != nil {
			return err
		}
		steps = append(steps[2:3:3], steps...)
	}
	for _, step := range steps {
		r.Progress(step.text)
		if now, err = r.change(ctx, step.next); err != nil {
			return err
		}
		if err := r.wait(ctx, now.Generation); err != nil {
			return err
		}
	}
	return nil
}

// change puts other keys in place of those in the API.
func (r GossipRotation) change(ctx context.Context, next func(cluster.GossipKeys) (cluster.GossipKeys, error)) (cluster.GossipKeys, error) {
	var out cluster.GossipKeys
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		secrets := r.Client.CoreV1().Secrets(metav1.NamespaceSystem)
		s, err := secrets.Get(ctx, GossipSecret, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("reading the gossip keys: %w", err)
		}
		keys, err := KeysIn(s)
		if err != nil {
			return err
		}
		if out, err = next(keys); err != nil || out.Generation == keys.Generation {
			return err
		}
		if err := PutKeys(s, out); err != nil {
			return err
		}
		_, err = secrets.Update(ctx, s, metav1.UpdateOptions{})
		return err
	})
	return out, err
}

// wait returns when all members that are alive have the keys of a generation.
func (r GossipRotation) wait(ctx context.Context, generation uint64) error {
	last := ""
	for {
		members, err := r.Members(ctx)
		if err != nil {
			return err
		}
		var behind []string
		alive := 0
		for _, m := range members {
			if m.State != "alive" {
				continue
			}
			alive++
			if m.KeyGeneration < generation {
				behind = append(behind, m.Name)
			}
		}
		if alive > 0 && len(behind) == 0 {
			return nil
		}
		if text := strings.Join(behind, ", "); text != last {
			last = text
			r.Progress(fmt.Sprintf("  %d of %d have the keys; waiting for %s", alive-len(behind), alive, text))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the rotation was interrupted; all machines still understand one another. Run it again to bring it to an end: %w", ctx.Err())
		case <-time.After(rotationLook):
		}
	}
}
