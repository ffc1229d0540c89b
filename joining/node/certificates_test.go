// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/joining/node"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStatusNamesAuthoritiesThatEnd: a node says from 90 days before which of its authorities end, and goes on asking
// the servers for renewed ones.
func TestStatusNamesAuthoritiesThatEnd(t *testing.T) {
	shown := func(s *servers) status.Component {
		board, o := status.NewBoard(time.Now), s.options(t.TempDir())
		o.Part = board.Part("certificates")
		n := testenv.Must(node.Join(t.Context(), o))(t)
		testenv.Equal(t, board.Components()[0].State, status.Waiting, "before Run:")
		defer testenv.Run(t, n.Run)()
		var now status.Component
		testenv.Eventually(t, time.Minute, "the line of the certificates", func() error {
			if now = board.Components()[0]; now.State == status.Waiting {
				return errors.New("not yet")
			}
			return nil
		})
		return now
	}
	if now := shown(newServers(t)); now.State != status.Running || now.Message != "" {
		t.Errorf("authorities of twenty years: %+v", now)
	}
	own := t.TempDir()
	for _, name := range []string{"server-ca", "client-ca"} {
		testenv.NoError(t, testca.WriteOwn(own, name, time.Now().Add(80*24*time.Hour)))
	}
	s := newServersWith(t, own)
	now := shown(s)
	testenv.Equal(t, now.State, status.Degraded, "authorities of 80 days:")
	for _, want := range []string{"server-ca ends on ", "client-ca ends on ", "(in 79 days)", "pods keep running", node.RenewalHint} {
		testenv.True(t, strings.Contains(now.Message, want), "the message lacks %q: %+v", want, now)
	}
}
