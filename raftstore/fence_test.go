// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// A term's writes are done where it leads, and nowhere else; a refusal is reported
// to the term's owner.
func TestWritesOfATerm(t *testing.T) {
	ctx := testContext(t)
	stores := openSteady(t, 3)
	leader, follower := stores[0], stores[1]
	term := leader.Status().Leadership.Term
	testenv.Require(t, term != 0 && leader.Status().Leadership.Leader, "the first server does not lead")
	refused := 0
	in := func(term uint64) context.Context { return WithFence(ctx, term, func() { refused++ }) }
	put := func(s *Store, term uint64) error {
		_, err := s.Write(in(term), &pb.PutRequest{Key: []byte("k")})
		return err
	}
	if err := errors.Join(put(leader, term), leader.CheckTerm(in(term)), leader.ConfirmTerm(in(term)), leader.CheckTerm(ctx), follower.ConfirmTerm(ctx)); err != nil || refused > 0 {
		t.Fatalf("in the right term: %v, %d refused", err, refused)
	}
	rev := leader.replica.fsm.view().Revision()
	for _, s := range stores {
		for _, number := range []uint64{term - 1, term, term + 1} {
			if s == leader && number == term {
				continue
			}
			for what, err := range map[string]error{"write": put(s, number), "check": s.CheckTerm(in(number)), "confirm": s.ConfirmTerm(in(number))} {
				if !errors.Is(err, mvcc.ErrFenced) {
					t.Errorf("%s in term %d on %s: %v", what, number, s.replica.name, err)
				}
			}
		}
	}
	testenv.Equal(t, refused, 3*8, "refusals were reported:")
	if now := leader.replica.fsm.view().Revision(); now != rev {
		t.Errorf("revision %d after %d", now, rev)
	}

	// A leader that a majority does not answer cannot say that its term goes on.
	for _, s := range stores[1:] {
		testenv.NoError(t, s.Close(ctx))
	}
	testenv.Fails(t, leader.ConfirmTerm(in(term)), "confirmed alone")
}
