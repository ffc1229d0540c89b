// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/peer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// An answer may be larger than what a server may ask of another.
func TestHugeAnswerThroughAFollower(t *testing.T) {
	ctx := testContext(t)
	// The leader stays, however little of the processors the test gets.
	stores := openClusterOf(t, 3, func(o *Options) { o.ElectionTimeout, o.RequestTimeout = 5*time.Second, time.Minute })
	leader, _ := stores[0].leader.get()
	s := stores[0]
	if leader.Self {
		s = stores[1]
	}
	const size = 1 << 20
	const n = peer.MaxCall/size + 2
	for i := range n {
		testenv.NoError(t, testenv.Err(s.api.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "huge/%d", i), Value: []byte(noise(size))})))
	}
	var writes sync.WaitGroup
	for i := range 50 {
		writes.Go(func() {
			testenv.Check(t, testenv.Err(s.api.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "small/%d", i)})))
		})
	}
	deleted, err := s.api.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("huge/"), RangeEnd: []byte("huge0"), PrevKv: true})
	if err != nil || len(deleted.PrevKvs) != n {
		t.Errorf("delete: %d previous values, %v", len(deleted.GetPrevKvs()), err)
	}
	writes.Wait()
	got, err := s.api.Range(ctx, &pb.RangeRequest{Key: []byte("huge/"), RangeEnd: []byte("huge0"), CountOnly: true})
	if err != nil || got.Count != 0 {
		t.Errorf("%d are left, %v", got.GetCount(), err)
	}
}

// Where there is a limit, the answers that exceed it are given up, and say so:
// they do not take those of other writes with them, nor look like refusals.
func TestAnswersWithin(t *testing.T) {
	answer := func(size int) mvcc.Result {
		return mvcc.Result{Response: &pb.DeleteRangeResponse{
			Header: &pb.ResponseHeader{}, PrevKvs: []*mvccpb.KeyValue{{Value: make([]byte, size)}},
		}}
	}
	encoded, err := mvcc.EncodeResultsWithin([]mvcc.Result{answer(10), answer(5000), answer(20), answer(3000)}, 4000)
	testenv.Require(t, err == nil && len(encoded) <= 4000, "%d bytes, %v", len(encoded), err)
	results, err := mvcc.DecodeResults(encoded)
	testenv.Require(t, err == nil && len(results) == 4, "%v, %v", results, err)
	for i, want := range []error{nil, mvcc.ErrResultDropped, nil, nil} {
		if !errors.Is(results[i].Err, want) {
			t.Errorf("answer %d: %v instead of %v", i, results[i].Err, want)
		}
	}
	testenv.Equal(t, status.Code(results[1].Err), codes.Unavailable, "code:")
}

// A member without a vote cannot be made the leader.
func TestLeadershipIsForVoters(t *testing.T) {
	ctx := testContext(t)
	stores := openCluster(t, 2)
	err := transferBetween(ctx, stores[0], stores[1])
	testenv.Require(t, status.Code(err) == codes.FailedPrecondition, "%v", err)
}
