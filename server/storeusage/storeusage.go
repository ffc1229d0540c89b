// SPDX-License-Identifier: Apache-2.0

// Package storeusage counts what takes the space in a store, by kinds of objects and namespaces, and judges it against
// the quotas of the cluster's servers. It only reads. The kinds come from the keys alone, so it needs no API server and
// no key for encrypted objects.
package storeusage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// Handler serves status.UsagePath. It returns an error until the store is open.
func Handler(store func() *raftstore.Store) http.Handler {
	return status.JSONHandler(func(context.Context) (*status.StoreUsage, error) {
		s := store()
		if s == nil {
			return nil, errors.New("the store is not open yet; coracle status says why")
		}
		return Of(s.View(), s.Health().Quota()), nil
	})
}

// Of counts what is in a view. quota is the limit of the store's size in bytes.
func Of(view *mvcc.View, quota int64) *status.StoreUsage {
	type place struct{ kind, namespace string }
	found := map[place]*status.KindUsage{}
	view.Walk([]byte{0}, []byte{0}, view.Revision(), func(v *mvcc.Version) bool {
		kind, namespace := kindOf(string(v.KV().Key))
		of := found[place{kind, namespace}]
		if of == nil {
			of = &status.KindUsage{Kind: kind, Namespace: namespace}
			found[place{kind, namespace}] = of
		}
		of.Keys++
		of.Bytes += v.Size()
		return true
	})
	stats := view.Stats()
	out := &status.StoreUsage{
		StoreSize: status.StoreSize{Live: stats.LiveBytes, Total: stats.TotalBytes, Quota: quota}, Keys: stats.Keys,
		Kinds: make([]status.KindUsage, 0, len(found)),
	}
	for _, of := range found {
		out.Kinds = append(out.Kinds, *of)
	}
	status.SortUsage(out.Kinds)
	return out
}

// renamedResources has the resources whose names in the store's keys differ from those in the API.
var renamedResources = map[string]string{
	"minions": "nodes", "controllers": "replicationcontrollers", "services/specs": "services", "services/endpoints": "endpoints",
}

// kindOf returns the kind and the namespace of the object with a key. Keys of the API server are
// /registry/[GROUP/]RESOURCE/[NAMESPACE/]NAME. Only groups of custom resources and aggregated APIs are in keys, and
// have a dot.
func kindOf(key string) (kind, namespace string) {
	path, object := strings.CutPrefix(key, "/registry/")
	if !object {
		root, _, _ := strings.Cut(strings.TrimPrefix(key, "/"), "/")
		return root, ""
	}
	words := strings.Split(path, "/")
	kind, words = words[0], words[1:]
	switch {
	case len(words) > 1 && strings.Contains(kind, "."):
		kind, words = words[0]+"."+kind, words[1:]
	case len(words) > 1 && kind == "services":
		kind, words = kind+"/"+words[0], words[1:]
	}
	if name := renamedResources[kind]; name != "" {
		kind = name
	}
	if len(words) > 1 {
		namespace = words[0]
	}
	return kind, namespace
}

// maxNamedKinds is how many kinds a note names.
const maxNamedKinds = 3

// Judge adds to the state of the servers what their quotas mean for the store. quota is the limit of the store's size
// in bytes if no leader reports one.
func Judge(servers *status.Servers, view *mvcc.View, quota int64) {
	live := view.Stats().LiveBytes
	limit, by := limitOf(servers.Servers, quota)
	if limit > 0 && live*5 >= limit*4 {
		servers.Notes = append(servers.Notes, fmt.Sprintf("the objects in the store take %d%% of its quota of %s%s. Most is taken by %s. "+
			"Writes that do not fit in are refused. coracle store usage says more", live*100/limit, status.Bytes(limit), by,
			largestKinds(Of(view, limit))))
	}
	for _, s := range servers.Servers {
		if !s.Answers || s.Quota == 0 || s.Quota == limit || s.Quota >= live+live/4 {
			continue
		}
		text := fmt.Sprintf("%s: its memory is enough for a store of %s, and the objects take %s already. Give its machine or control group "+
			"more memory", s.Name, status.Bytes(s.Quota), status.Bytes(live))
		if s.Quota < live {
			servers.Problems = append(servers.Problems, text+", or it may be killed for lack of it")
		} else {
			servers.Notes = append(servers.Notes, text)
		}
	}
}

// limitOf returns the cluster's quota, and says which server's memory sets it if the servers' differ.
func limitOf(servers []status.ClusterServer, quota int64) (limit int64, by string) {
	limit = quota
	for _, s := range servers {
		if s.ClusterQuota > 0 {
			limit = s.ClusterQuota
		}
	}
	differ := false
	for _, s := range servers {
		if s.Quota == limit {
			by = ", which the memory of " + s.Name + " allows"
		} else if s.Quota > 0 {
			differ = true
		}
	}
	if !differ {
		by = ""
	}
	return limit, by
}

// largestKinds names the kinds that use most of the store.
func largestKinds(usage *status.StoreUsage) string {
	var words []string
	kinds := usage.ByKind()
	for _, k := range kinds[:min(maxNamedKinds, len(kinds))] {
		words = append(words, fmt.Sprintf("%s (%d, %s)", k.Kind, k.Keys, status.Bytes(k.Bytes)))
	}
	return strings.Join(words, ", ")
}
