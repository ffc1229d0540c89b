// SPDX-License-Identifier: Apache-2.0

package starting

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/joining/protocol"
)

const (
	// A server that waits for its store asks the others after reachDelay whether they can connect to it, and then
	// every reachInterval.
	reachDelay, reachInterval = 5 * time.Second, 30 * time.Second
	// reachTimeout limits the connection to another server, and then that server's attempt to connect.
	reachTimeout = 3 * time.Second
	// wasRemoved is the message for a server that is not a member any more. The store logs it.
	wasRemoved = "this server was removed from the cluster, which goes on without it. To let it join again, stop it, move the store's directory away, and start it with the address of another server"
)

// ExplainWait writes to the log and the status why a store that waits for the others may wait for ever, until ctx is
// done.
func (s *Starting) ExplainWait(ctx context.Context, others func() []string, removed func() bool) {
	if len(others()) == 0 {
		return
	}
	why, ask := "", time.After(reachDelay)
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.targetsChanged:
		case <-ask:
			last := why
			if why = wasRemoved; !removed() {
				why = s.WhyUnreached(ctx, others())
			}
			ask = time.After(reachInterval)
			if ctx.Err() != nil {
				return
			}
			if why != last && why != "" {
				s.o.Logger.Warn("the store waits for the other servers", "reason", why)
			}
		}
		s.o.Part.Set(status.Starting, why+s.failoverText(why != ""))
	}
}

// failoverText returns a text about the server that serves this machine's programs while the store waits. after says
// that the text follows another one.
func (s *Starting) failoverText(after bool) string {
	list := s.FailoverTargets()
	switch {
	case len(list) == 0:
		return ""
	case after:
		return ". Meanwhile the server at " + list[0] + " answers this machine's node and other programs"
	}
	return "it waits; meanwhile the server at " + list[0] + " answers this machine's node and other programs"
}

// WhyUnreached asks the others whether they can connect to this server at its advertised address. It returns the reason
// why not, or an empty string if one of them can.
func (s *Starting) WhyUnreached(ctx context.Context, others []string) string {
	own := s.o.Address()
	var errs []error
	for _, other := range unique(others) {
		if other == own {
			continue
		}
		q := s.o.Question()
		q.Address, q.Dialer.Timeout = other, reachTimeout
		_, err := protocol.Send(ctx, q)
		var refusal *protocol.Refusal
		switch {
		case err == nil:
			return ""
		case errors.As(err, &refusal) && refusal.Code == protocol.CodeAddress:
			return fmt.Sprintf(
				"the server at %s cannot reach this server at its advertised address %s (--advertise-address, --https-listen-port): %s",
				other, own, refusal.Message)
		}
		if text := err.Error(); !slices.ContainsFunc(errs, func(e error) bool { return strings.Contains(e.Error(), text) }) {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return ""
	}
	texts := convert.Slice(errs, error.Error) // on one line, for a table
	return "no other server answers: " + strings.Join(texts, "; ") +
		". Other servers are also searched for on this machine's networks. If they have new addresses on other networks, start this server once with the address " +
		"of one of them: --server https://ADDRESS:6443"
}
