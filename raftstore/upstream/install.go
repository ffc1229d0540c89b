// SPDX-License-Identifier: Apache-2.0

// Package upstream makes the API server's libraries use our store: wherever they would connect to etcd, they get a
// client of the store instead.
//
// It owns the one variable of these libraries that selects the client. docs/architecture.md lists all of their
// variables that this project sets. It never opens or closes a store.
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

// newETCD3Client is upstream's only way to make an etcd client. It is called by the storage of built-in and custom
// resources, health checks, the compactor, allocators and reconcilers. Upstream offers no hook for it, and its
// RESTOptions decorator reaches only some of these callers. A test fails if the variable no longer exists.
//
//go:linkname newETCD3Client k8s.io/apiserver/pkg/storage/storagebackend/factory.newETCD3Client
var newETCD3Client func(storagebackend.TransportConfig) (*kubernetes.Client, error)

// Install makes upstream get its etcd clients from newClient. That must return a new client at each call, because
// upstream wraps and closes them. The transport configuration is ignored, but its ServerList must not be empty:
// upstream selects an entry of it.
//
// Install must be called once, before any storage is built: the variable has no lock.
func Install(newClient func() *kubernetes.Client) {
	newETCD3Client = func(storagebackend.TransportConfig) (*kubernetes.Client, error) {
		return newClient(), nil
	}
	// Upstream never asks a client without endpoints for its version, and then takes it to be unable to report watch
	// progress. Consistent reads would then bypass the watch cache.
	feature.DefaultFeatureSupportChecker.CheckClient(context.Background(), versioned{}, storage.RequestWatchProgress)
}

// version is the version of etcd whose contract the store fulfils.
const version = "3.7.0"

// versioned has those methods of an etcd client that the feature check calls.
type versioned struct{}

func (versioned) Endpoints() []string { return []string{"raftstore"} }

func (versioned) Status(context.Context, string) (*clientv3.StatusResponse, error) {
	return &clientv3.StatusResponse{Version: version}, nil
}
