// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/client/v3/kubernetes"
)

// BenchmarkPutThree is BenchmarkPut on three servers in this process, with the
// clients on one of them.
func BenchmarkPutThree(b *testing.B) {
	for _, at := range []string{"leader", "follower"} {
		for _, clients := range []int{1, 16, 128} {
			b.Run(fmt.Sprintf("at=%s/clients=%d", at, clients), func(b *testing.B) {
				stores := openCluster(b, 3)
				s := stores[0]
				if at == "follower" {
					s = stores[1]
				}
				putAll(b, s, clients)
			})
		}
	}
}

// BenchmarkReadThree gets a key, linearizably.
func BenchmarkReadThree(b *testing.B) {
	stores := openCluster(b, 3)
	ctx := context.Background()
	if _, err := stores[0].Client().Put(ctx, "key", "value"); err != nil {
		b.Fatal(err)
	}
	for i, at := range []string{"leader", "follower"} {
		for _, clients := range []int{1, 128} {
			b.Run(fmt.Sprintf("at=%s/clients=%d", at, clients), func(b *testing.B) {
				c := stores[i].Client()
				var next atomic.Int64
				var all sync.WaitGroup
				for range clients {
					all.Go(func() {
						for next.Add(1) <= int64(b.N) {
							if _, err := c.Kubernetes.Get(ctx, "key", kubernetes.GetOptions{}); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
			})
		}
	}
}
