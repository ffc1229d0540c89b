// SPDX-License-Identifier: Apache-2.0

// Package member sends the request of a machine that becomes a server of a cluster (joining/protocol is the protocol).
//
// It repeats the request until a server accepts or refuses it, and checks the response. It stores nothing: the files
// belong to the parts of package server.
package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
)

// retryPause is the pause between requests while no server answers.
const retryPause = 2 * time.Second

// Request is a request to become a server of an existing cluster. All fields but Node and Flags are required.
type Request struct {
	// Address is host:port of a server. Token is the cluster's server token.
	Address, Token string
	// Node is the server's node. It has no name if the server has no node.
	Node protocol.Node
	// Flags are the flags in which all servers have to agree.
	Flags map[string]string
	// Program is this program's version.
	Program string
	Now     func() time.Time
	Logger  *slog.Logger
}

// Send sends the request until a server accepts it, or refuses it for a reason that does not end by itself. A token for
// agents is not sent.
func (r Request) Send(ctx context.Context) (*protocol.Response, error) {
	t, err := token.Parse(r.Token)
	if err != nil {
		return nil, fmt.Errorf("--token: %w", err)
	}
	if t.Role == token.RoleAgent || t.Role == token.RoleBootstrap {
		return nil, errors.New("--token: this is a token for agents; it was not sent. A server joins with the one for servers: `coracle " +
			"token print --server` on a server shows it")
	}
	var a *protocol.Response
	timers.Retry(ctx, r.Logger.With("server", r.Address), retryPause, "the server cannot join yet; retrying", func() error {
		a, err = protocol.Send(ctx, protocol.Call{Address: r.Address, Token: t, Request: protocol.Request{
			Role: token.RoleServer, Program: r.Program, Time: r.Now(), Node: r.Node,
		}})
		var refusal *protocol.Refusal
		if errors.Is(err, protocol.ErrUnreachable) || errors.As(err, &refusal) && refusal.Passing() {
			return err
		}
		return nil
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("joining the cluster at %s: %w", r.Address, err)
	case a.Server == nil || a.Settings.Validate() != nil:
		return nil, fmt.Errorf("the server at %s sent no keys, or invalid settings", r.Address)
	}
	if err := a.CheckLevel(); err != nil {
		return nil, fmt.Errorf("joining the cluster at %s: %w", r.Address, err)
	}
	return a, nil
}

// CheckFlags refuses flags that differ from those of the server that answered. A server of an earlier version sends
// none.
func (r Request) CheckFlags(has map[string]string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(has)) {
		if own, known := r.Flags[name]; known && own != has[name] {
			errs = append(errs, fmt.Errorf("--%s: this server has %q, but the one at %s has %q. Set the same value on all servers. Nothing was "+
				"changed on this machine", name, own, r.Address, has[name]))
		}
	}
	return errors.Join(errs...)
}
