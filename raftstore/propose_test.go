// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// A command whose context has ended before is handed to no one.
func TestEndedRequestIsNotProposed(t *testing.T) {
	var sent int
	p := newProposer(0, func() int { return 1 }, func([]byte, []int) func() ([]mvcc.Result, error) { sent++; return nil })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if _, err := p.propose(ctx, bounds{}, mvcc.Command{Request: &pb.PutRequest{Key: []byte("k")}}); !errors.Is(err, errUntried) {
			t.Fatal(err)
		}
	}
	if n := len(p.queue); n > 0 || sent > 0 {
		t.Errorf("%d of 100 ended requests wait for a worker", n)
	}
}
