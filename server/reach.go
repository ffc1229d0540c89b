// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
)

const (
	// A server that waits for its store asks the others after askReachFirst whether they reach it, and then every
	// askReachEvery.
	askReachFirst, askReachEvery = 5 * time.Second, 30 * time.Second
	// askReachPatience bounds the connecting to another server, and then that one's try.
	askReachPatience = 3 * time.Second
	// wasRemoved is the message for a server whom the others do not count any more; the store says it in
	// the log.
	wasRemoved = "this server was removed from the cluster, which goes on without it. To let it join again, stop it, move the store's directory away, and start it with the address of another server"
)

// explainWait says in the log and on the board why a store that waits for the others may wait in vain, until ctx is
// done.
func (s *Server) explainWait(ctx context.Context, others func() []string, removed func() bool) {
	if len(others()) == 0 {
		return
	}
	why, ask := "", time.After(askReachFirst)
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.starting.news:
		case <-ask:
			last := why
			if why = wasRemoved; !removed() {
				why = s.whyUnreached(ctx, others())
			}
			ask = time.After(askReachEvery)
			if ctx.Err() != nil {
				return
			}
			if why != last && why != "" {
				s.log.Warn("the store waits for the other servers", "reason", why)
			}
		}
		s.board.store.Set(status.Starting, why+s.meanwhile(why != ""))
	}
}

// meanwhile says who answers this machine's programs while the store waits, after other words or not.
func (s *Server) meanwhile(after bool) string {
	list := s.elsewhere()
	switch {
	case len(list) == 0:
		return ""
	case after:
		return ". Meanwhile the server at " + list[0] + " answers this machine's node and other programs"
	}
	return "it waits; meanwhile the server at " + list[0] + " answers this machine's node and other programs"
}

// whyUnreached asks others whether they reach this server at the address that it gives them; "" if one that answers
// does.
func (s *Server) whyUnreached(ctx context.Context, others []string) string {
	own := s.peerAddress()
	var errs []error
	for _, other := range unique(others) {
		if other == own {
			continue
		}
		_, err := protocol.Ask(ctx, protocol.Question{
			Address: other, Token: s.tokens.Now().Server, Dialer: net.Dialer{Timeout: askReachPatience},
			Request: protocol.Request{
				Role: token.RoleServer, Program: s.o.Version, Time: s.o.Clock.Now(),
				Reach: &protocol.Reach{Address: own, ServerID: s.data.ServerID()},
			},
		})
		var refusal *protocol.Refusal
		switch {
		case err == nil:
			return ""
		case errors.As(err, &refusal) && refusal.Code == protocol.CodeAddress:
			return fmt.Sprintf("the server at %s does not reach this one at %s, the address by which the others know it (--advertise-address, --https-listen-port): %s",
				other, own, refusal.Message)
		}
		if text := err.Error(); !slices.ContainsFunc(errs, func(e error) bool { return strings.Contains(e.Error(), text) }) {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return ""
	}
	texts := make([]string, 0, len(errs)) // on one line: it stands in a table
	for _, err := range errs {
		texts = append(texts, err.Error())
	}
	return "no other server answers: " + strings.Join(texts, "; ") +
		". Other servers are also searched for on this machine's networks. If they have other addresses by now and are elsewhere, start this one once with the address " +
		"of one of them: --server https://ADDRESS:6443"
}
