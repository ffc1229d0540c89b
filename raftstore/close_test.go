// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Raft loses the futures of entries that wait for its state machine when it is
// shut down; Close must not wait for those.
func TestCloseUnderLoad(t *testing.T) {
	for round := range 60 {
		s := testenv.Must(Open(t.Context(), Options{Dir: t.TempDir(), NodeID: "one", Logger: testLog("one")}))(t)
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
