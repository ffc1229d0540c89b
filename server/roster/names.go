// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore"
)

const (
	// namesPrefix, followed by a server's ID in the store, is the key under which that server publishes its name. So a
	// server has a name even if it has no node or does not answer.
	namesPrefix = "/coracle/servers/names/"
	// nameRetry is the pause after a failed write of the name.
	nameRetry = 5 * time.Second
)

// PublishName writes this server's name to the store, until that has succeeded or ctx is done.
func (r *Roster) PublishName(ctx context.Context) {
	trouble := "this server's name could not be published to the other servers; retrying"
	timers.Retry(ctx, r.o.Logger, nameRetry, trouble, func() error {
		return writeName(ctx, r.o.Store.Opened().Client().KV, r.o.ServerID, r.o.Name, r.o.Store.Members)
	})
}

// writeName writes a server's name into the store, if it is not there. It also removes the names of servers that are
// not members any more.
func writeName(ctx context.Context, kv clientv3.KV, id, name string, members func() []raftstore.Member) error {
	published, err := kv.Get(ctx, namesPrefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("reading the servers' names: %w", err)
	}
	there := false
	all := members() // read after the names: a server that had published one was a member by then
	for _, has := range published.Kvs {
		of := strings.TrimPrefix(string(has.Key), namesPrefix)
		switch {
		case of == id:
			there = string(has.Value) == name
		case !IsMember(all, of):
			if _, err := kv.Delete(ctx, string(has.Key)); err != nil {
				return fmt.Errorf("removing the name of a removed server: %w", err)
			}
		}
	}
	if there {
		return nil
	}
	if _, err := kv.Put(ctx, namesPrefix+id, name); err != nil {
		return fmt.Errorf("writing this server's name: %w", err)
	}
	return nil
}

// NamesServer says whether a member of the store has published this name. It asks a majority.
func NamesServer(ctx context.Context, kv clientv3.KV, members []string, name string) (bool, error) {
	published, err := kv.Get(ctx, namesPrefix, clientv3.WithPrefix())
	if err != nil {
		return false, fmt.Errorf("reading the servers' names: %w", err)
	}
	return slices.ContainsFunc(published.Kvs, func(has *mvccpb.KeyValue) bool {
		return string(has.Value) == name && slices.Contains(members, strings.TrimPrefix(string(has.Key), namesPrefix))
	}), nil
}

// publishedNames returns the published names in this server's replica of the store, which needs no majority.
func publishedNames(ctx context.Context, kv clientv3.KV) map[string]string {
	out := map[string]string{}
	published, err := kv.Get(ctx, namesPrefix, clientv3.WithPrefix(), clientv3.WithSerializable())
	if err != nil {
		return out // the names are only a help
	}
	for _, has := range published.Kvs {
		out[strings.TrimPrefix(string(has.Key), namesPrefix)] = string(has.Value)
	}
	return out
}
