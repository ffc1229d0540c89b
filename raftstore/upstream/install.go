// SPDX-License-Identifier: Apache-2.0

// Package upstream makes the API server libraries use our store: every place
// in them that would connect to etcd gets a client of the store instead.
//
// It owns that one variable of theirs, and nothing else: docs/architecture.md lists
// all that this project sets. It never opens or closes a store.
package upstream

import (
	"context"
	_ "unsafe" // for go:linkname

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/feature"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	_ "k8s.io/apiserver/pkg/storage/storagebackend/factory" // it holds the variable
)

// newETCD3Client is upstream's only way to an etcd client: storage of built-in
// and custom resources, health checks, the compactor, allocators and
// reconcilers all call it. Upstream offers no hook, and its RESTOptions
// decorator reaches only some of these. A test fails if the variable is gone.
//
//go:linkname newETCD3Client k8s.io/apiserver/pkg/storage/storagebackend/factory.newETCD3Client
var newETCD3Client func(storagebackend.TransportConfig) (*kubernetes.Client, error)

// Install makes upstream take its etcd clients from newClient, which has to
// return a new one at each call, because upstream wraps and closes them. The
// transport configuration is ignored, but its ServerList must name something:
// upstream picks an entry of it.
//
// Call it once, before any storage is built: the variable has no lock.
func Install(newClient func() *kubernetes.Client) {
	newETCD3Client = func(storagebackend.TransportConfig) (*kubernetes.Client, error) {
		return newClient(), nil
	}
	// A client without endpoints is never asked for its version, and then
	// counts as unable to report watch progress, so consistent reads would go
	// around the watch cache.
	feature.DefaultFeatureSupportChecker.CheckClient(context.Background(), versioned{}, storage.RequestWatchProgress)
}

// version is that of the etcd whose contract the store fulfils.
const version = "3.7.0"

// versioned is as much of an etcd client as the feature check wants.
type versioned struct{}

func (versioned) Endpoints() []string { return []string{"raftstore"} }

func (versioned) Status(context.Context, string) (*clientv3.StatusResponse, error) {
	return &clientv3.StatusResponse{Version: version}, nil
}
