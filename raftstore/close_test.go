// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Raft loses the futures of entries that wait for its state machine when it is
// shut down; Close must not wait for those.
func TestCloseUnderLoad(t *testing.T) {
	for round := range 60 {
		s := testenv.Must(raftstore.Open(t.Context(), raftstore.Options{Dir: t.TempDir(), NodeID: "one", Logger: raftstore.TestLog("one")}))(t)
		testenv.NoError(t, s.WaitReady(t.Context()))
		var writers sync.WaitGroup
		c := s.Client()
		for w := range 16 {
			writers.Go(func() {
				for i := 0; ; i++ {
					if _, err := c.Put(t.Context(), fmt.Sprintf("k%d", w), "v"); err != nil {
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(round%10) * time.Millisecond) // the writes get to another point each round
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		err := s.Close(ctx)
		cancel()
		testenv.NoError(t, err, "round %d", round)
		writers.Wait()
	}
}

func TestCloseEndsEverything(t *testing.T) {
	before := goleak.IgnoreCurrent()
	ctx := raftstore.TestContext(t)
	s := raftstore.OpenStore(t, raftstore.Options{Dir: t.TempDir()})
	c := s.Client()
	watch := c.Watch(ctx, "/", clientv3.WithPrefix())
	testenv.NoError(t, s.Close(ctx))
	if _, ok := <-watch; ok {
		t.Error("a watch outlived the store")
	}
	testenv.NoGoroutineLeft(t, before)
}
