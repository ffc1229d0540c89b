// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

// An answer that is too large to be sent to a follower does not take those of
// the other writes with it, and does not look like a refusal.
func TestHugeAnswerThroughAFollower(t *testing.T) {
	ctx := testContext(t)
	stores := openCluster(t, 3)
	leader, _ := stores[0].leader.get()
	s := stores[0]
	if leader.Self {
		s = stores[1]
	}
	const size = 1 << 20
	for i := range peer.MaxCall/size + 2 {
		if _, err := s.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "huge/%d", i), Value: []byte(noise(size))}); err != nil {
			t.Fatal(err)
		}
	}
	var writes sync.WaitGroup
	for i := range 50 {
		writes.Go(func() {
			if _, err := s.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "small/%d", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	_, err := s.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("huge/"), RangeEnd: []byte("huge0"), PrevKv: true})
	if !errors.Is(err, mvcc.ErrForgotten) || status.Code(err) != codes.Unavailable {
		t.Errorf("delete: %v", err)
	}
	writes.Wait()
	got, err := s.Range(ctx, &pb.RangeRequest{Key: []byte("huge/"), RangeEnd: []byte("huge0"), CountOnly: true})
	if err != nil || got.Count != 0 {
		t.Errorf("%d are left, %v", got.GetCount(), err)
	}
}

// A member without a vote cannot be made the leader.
func TestLeadershipIsForVoters(t *testing.T) {
	ctx := testContext(t)
	stores := openCluster(t, 2)
	err := stores[0].transferTo(ctx, stores[1].memberID)
	if status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("%v", err)
	}
}
