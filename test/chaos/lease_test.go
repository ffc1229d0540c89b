// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	grpccodes "google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/test/history"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestLeaseViolationsAreDetected(t *testing.T) {
	ttl := int64(leaseTTL)
	put := history.Event{KV: history.KV{Key: "x", Value: "a", Create: 2, Mod: 2, Version: 1}}
	expiredAt := func(when int64) *history.Timeline {
		e := history.Event{KV: history.KV{Key: "x", Mod: 3}, Delete: true, At: when}
		return history.NewTimeline([]history.Event{put, e})
	}
	held := []*tenancy{{Key: "x", Kept: []int64{0, ttl / 2}, Dropped: ttl}}
	testenv.Equal(t, len(checkLeases(held, expiredAt(ttl+1))), 1, "a key that vanished while it was held:")
	testenv.Equal(t, len(checkLeases(held, expiredAt(2*ttl))), 0, "a key that vanished in time:")
	testenv.Equal(t, len(checkLeases(held, history.NewTimeline([]history.Event{put}))), 1, "a key that stayed:")
}

func TestOutcomeOfEachError(t *testing.T) {
	for err, want := range map[error]string{
		nil:                              history.OutcomeOK,
		rpctypes.ErrNoSpace:              history.OutcomeFailed,
		rpctypes.ErrNoLeader:             history.OutcomeMaybe,
		rpctypes.ErrTimeout:              history.OutcomeMaybe,
		rpctypes.ErrLeaseNotFound:        history.OutcomeFailed,
		errors.New("connection refused"): history.OutcomeMaybe,
		grpcstatus.Error(grpccodes.Unavailable, "closing"):              history.OutcomeMaybe,
		grpcstatus.Error(grpccodes.FailedPrecondition, "it is fenced…"): history.OutcomeFailed,
	} {
		testenv.Equal(t, outcomeOf(err), want, "%v:", err)
	}
}
