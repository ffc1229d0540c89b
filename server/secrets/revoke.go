// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/storecrypt"
)

// revokeTries is how often a change of the record is tried again when another command has changed it meanwhile.
const revokeTries = 5

// Revocation is the state of a node's revocation.
type Revocation struct {
	// Times is how often nodes of this name were revoked.
	Times uint64
	// Unfinished says that the last one has not ended (FinishRevocation).
	Unfinished bool
	// Generation is the generation of the stored tokens, for AwaitServers.
	Generation uint64
}

// ReadRevocation returns the state of a node's revocation. serverDir is the folder of one server.
func ReadRevocation(ctx context.Context, kv clientv3.KV, serverDir, node string) (Revocation, error) {
	_, r, _, err := presentTokens(ctx, kv, serverDir)
	return r.revocation(node), err
}

func (r *storedTokens) revocation(node string) Revocation {
	return Revocation{r.Revoked[node], slices.Contains(r.Unfinished, node), r.Generation}
}

// RevokeNode has all servers refuse the certificates that the nodes of this name have, and replaces the agent token, in
// one write, also if an earlier revocation of the name has not ended.
func RevokeNode(ctx context.Context, kv clientv3.KV, serverDir, node string, now time.Time) (Revocation, error) {
	return changeRevocation(ctx, kv, serverDir, node, func(r *storedTokens, caHash string) error {
		if _, err := r.replace(token.RotationRequest{Role: token.RoleAgent, Now: now}, caHash); err != nil {
			return err
		}
		r.Revoked = r.Revoked.With(nodecreds.Revoked{node: r.Revoked[node] + 1})
		if !slices.Contains(r.Unfinished, node) {
			r.Unfinished = append(r.Unfinished, node)
		}
		return nil
	})
}

// FinishRevocation records that a node's revocation has ended.
func FinishRevocation(ctx context.Context, kv clientv3.KV, serverDir, node string) error {
	_, err := changeRevocation(ctx, kv, serverDir, node, func(r *storedTokens, _ string) error {
		r.Unfinished = slices.DeleteFunc(r.Unfinished, func(n string) bool { return n == node })
		return nil
	})
	return err
}

func changeRevocation(ctx context.Context, kv clientv3.KV, serverDir, node string,
	change func(*storedTokens, string) error) (Revocation, error) {
	for range revokeTries {
		box, r, caHash, err := presentTokens(ctx, kv, serverDir)
		if err != nil {
			return Revocation{}, err
		}
		if err := change(&r, caHash); err != nil {
			return Revocation{}, err
		}
		r.Generation++
		switch _, err = box.Put(ctx, r, r.revision); {
		case errors.Is(err, storecrypt.ErrChanged):
		case err != nil:
			return Revocation{}, fmt.Errorf("%w. The node may be revoked all the same; run the command again to complete it", err)
		default:
			return r.revocation(node), nil
		}
	}
	return Revocation{}, errors.New("other commands change the cluster's tokens at this moment; nothing was changed. Run the command again")
}
