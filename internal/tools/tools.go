//go:build tools

// Package tools keeps in go.mod what is built from source as a program of its own (runc, the stock etcd that
// benchmarks and tests compare with) and never linked into coracle.
package tools

import (
	_ "github.com/opencontainers/runc"
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/server/v3"
)
