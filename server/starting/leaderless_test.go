// SPDX-License-Identifier: Apache-2.0

package starting

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRetryUntilLeader: a server that starts outlives a store without a leader, and does not try for ever what no
// leader cures.
func TestRetryUntilLeader(t *testing.T) {
	s := &Starting{o: Options{Logger: slog.New(slog.DiscardHandler)}}
	damaged := errors.New("it cannot be opened with this server's authority")
	for name, tt := range map[string]struct {
		errs  []error
		want  error
		tries int
	}{
		"a leader":                {nil, nil, 1},
		"none for a while":        {[]error{fmt.Errorf("reading: %w", rpctypes.ErrNoLeader), fmt.Errorf("reading: %w", rpctypes.ErrGRPCNoLeader), rpctypes.ErrTimeoutDueToLeaderFail}, nil, 4},
		"what no leader cures":    {[]error{damaged}, damaged, 1},
		"the same, after another": {[]error{rpctypes.ErrNoLeader, damaged}, damaged, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				err := s.RetryUntilLeader(t.Context(), func() error {
					if tries++; tries <= len(tt.errs) {
						return tt.errs[tries-1]
					}
					return nil
				})
				testenv.False(t, !errors.Is(err, tt.want) || tries != tt.tries, "%v after %d tries", err, tries)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		err := s.RetryUntilLeader(ctx, func() error {
			cancel()
			return rpctypes.ErrNoLeader
		})
		testenv.True(t, errors.Is(err, rpctypes.ErrNoLeader), "when it was stopped meanwhile: %v", err)
	})
}
