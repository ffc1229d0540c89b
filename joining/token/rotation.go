// SPDX-License-Identifier: Apache-2.0

package token

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Former is a token that was replaced. It works until the earlier of two times.
type Former struct {
	Token
	// Until is the end by the clock of the server on which the token was replaced.
	Until time.Time
	// Here, if set, is the end by this server's clock, counted from when it learned of the replacement: its clock may
	// be behind the other one.
	Here time.Time
}

// Accepted returns the tokens that work at a time, the lasting ones first.
func (s Set) Accepted(now time.Time) []Token {
	out := []Token{s.Agent, s.Server}
	for _, f := range s.Former {
		if now.Before(f.Until) && (f.Here.IsZero() || now.Before(f.Here)) {
			out = append(out, f.Token)
		}
	}
	return out
}

// RotationRequest describes how to replace one of a cluster's tokens.
type RotationRequest struct {
	// Role selects the token.
	Role Role
	// Old, if given, has to be the current token. New is the next one, which is generated when New is empty. Both may
	// be whole tokens or bare secrets.
	Old, New string
	// Grace is how long the old token still works.
	Grace time.Duration
	Now   time.Time
}

// Next returns the token that replaces one of a set.
func (r RotationRequest) Next(s Set) (Token, error) {
	now, other := s.Server, s.Agent
	if r.Role == RoleAgent {
		now, other = s.Agent, s.Server
	}
	if r.Old != "" {
		old, err := Parse(r.Old)
		if err != nil {
			return Token{}, fmt.Errorf("--token: %w", err)
		}
		if old.Secret != now.Secret || old.Role != "" && old.Role != now.Role || old.CAHash != "" && old.CAHash != now.CAHash {
			return Token{}, fmt.Errorf("--token: that is not the cluster's token for the role %q now; nothing was changed. `coracle "+
				"token print` shows it", r.Role)
		}
	}
	next := Token{CAHash: now.CAHash, Role: now.Role}
	if r.New == "" {
		var err error
		next.Secret, err = newSecret()
		return next, err
	}
	given, err := Parse(r.New)
	switch {
	case err != nil:
		return Token{}, fmt.Errorf("--new-token: %w; nothing was changed", err)
	case given.Role == RoleBootstrap:
		return Token{}, errors.New("--new-token: a cluster's own token cannot have the form of one that expires; nothing was changed")
	case given.Role != "" && given.Role != now.Role:
		return Token{}, fmt.Errorf("--new-token: that is a token for the role %q, and one for %q is replaced; nothing was changed",
			given.Role, now.Role)
	case given.CAHash != "" && given.CAHash != now.CAHash:
		return Token{}, fmt.Errorf("--new-token: %w; nothing was changed", ErrOtherCluster)
	case given.Secret == now.Secret:
		return Token{}, errors.New("--new-token: that is the present token; nothing was changed")
	case given.Secret == other.Secret:
		return Token{}, errors.New("--new-token: the server token and the agent token cannot be the same: whoever may add a node could " +
			"then take over the cluster. Nothing was changed")
	}
	next.Secret = given.Secret
	return next, nil
}

// Save writes tokens to the files of a server's folder.
func Save(dir string, s Set) error {
	for file, t := range map[string]Token{ServerFile: s.Server, AgentFile: s.Agent} {
		if _, err := atomicfile.WriteIfDifferent(filepath.Join(dir, file), []byte(t.String()+"\n"), 0o600); err != nil {
			return fmt.Errorf("saving the cluster's tokens: %w", err)
		}
	}
	return linkNodeToken(dir)
}

// Read reads the files that Save writes.
func Read(dir string) (s Set, err error) {
	for file, into := range map[string]*Token{ServerFile: &s.Server, AgentFile: &s.Agent} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err == nil {
			*into, err = Parse(string(data))
		}
		if err != nil {
			return Set{}, fmt.Errorf("reading the cluster's tokens: %w", err)
		}
	}
	return s, nil
}
