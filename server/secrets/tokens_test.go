// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/testkv"
)

// newTokens makes the tokens of a server in a folder, with authorities, and a store that runs as long as the test.
func newTokens(t *testing.T, dir string) (*Tokens, *raftstore.Store) {
	t.Helper()
	f := Folders{Server: dir, TLS: filepath.Join(dir, "tls"), Cred: filepath.Join(dir, "cred")}
	p := testenv.Must(pki.Open(pki.Options{Dir: f.TLS, Logger: slog.New(slog.DiscardHandler)}))(t)
	tokens, err := NewTokens(TokenOptions{
		Folders: f, ServerID: "s1", Root: p.Root(), Server: "given-to-servers", Agent: "given-to-agents", Guard: new(nodecreds.Guard), Clock: clock.RealClock{}, Logger: slog.New(slog.DiscardHandler),
	})
	testenv.NoError(t, err)
	store := testenv.Must(
		raftstore.Open(t.Context(), raftstore.Options{Dir: t.TempDir(), NodeID: "s1", Logger: slog.New(slog.DiscardHandler)}))(t)
	t.Cleanup(func() { testenv.Check(t, store.Close(context.Background())) })
	testenv.NoError(t, store.WaitReady(t.Context()))
	testenv.NoError(t, tokens.Open(store.Client().KV))
	return tokens, store
}

// TestTokensAreTakenOver: a token that was replaced in the store is the server's, in its files and towards machines,
// and stays so at the next start, whatever the server was given before.
func TestTokensAreTakenOver(t *testing.T) {
	dir := t.TempDir()
	s, store := newTokens(t, dir)
	kv := store.Client().KV
	if n, err := s.Pull(t.Context()); n != 0 || err != nil {
		t.Fatalf("there is nothing to take over: %d, %v", n, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	followed := make(chan struct{})
	go func() { defer close(followed); s.Run(ctx, store.Client().Watcher) }()
	rotate := func(r token.RotationRequest) (token.Token, error) {
		r.Now = time.Now()
		next, behind, err := RotateToken(t.Context(), kv, dir, r, []string{"s1"}, time.Minute)
		testenv.False(t, err == nil && len(behind) > 0, "behind are %v", behind)
		return next, err
	}
	testenv.WantError(t, testenv.Err(rotate(token.RotationRequest{Role: token.RoleServer, Old: "guessed"})), "nothing was changed")
	first := testenv.Must(rotate(token.RotationRequest{Role: token.RoleServer, Old: "given-to-servers", New: "next", Grace: time.Hour}))(t)
	agent := testenv.Must(rotate(token.RotationRequest{Role: token.RoleAgent}))(t)
	has := s.Now()
	testenv.True(t, has.Server == first && first.Secret == "next" && has.Agent == agent && agent.Secret != "given-to-agents",
		"it goes by %+v", has)
	if valid := has.Accepted(time.Now()); len(valid) != 3 || valid[2].Secret != "given-to-servers" || valid[2].Role != token.RoleServer {
		t.Errorf("valid are %+v", valid)
	}
	if _, behind, err := RotateToken(t.Context(), kv, dir,
		token.RotationRequest{Role: token.RoleServer, Now: time.Now().Add(2 * time.Hour)}, []string{"off"}, 0); err != nil || len(behind) != 1 {
		t.Errorf("with a server that is off: %v, %v", behind, err)
	}
	stop()
	<-followed
	testenv.Must(s.Pull(t.Context()))(t)
	last := s.Now()
	testenv.False(t, len(last.Former) != 0 || last.Server.Secret == "next", "at last it has %+v", last)
	again, _ := newTokens(t, dir)
	if now := again.Now(); now.Server != last.Server || now.Agent != agent {
		t.Errorf("the next start goes by %+v, want %+v", now, last)
	}
}

// TestTokensOfAStoreThatWasSetBack: a restored store has the tokens of its time, or none. Those that were replaced
// since do not let anybody in again.
func TestTokensOfAStoreThatWasSetBack(t *testing.T) {
	dir := t.TempDir()
	s, store := newTokens(t, dir)
	kv := store.Client().KV
	rotate := func(r token.RotationRequest) token.Token {
		t.Helper()
		r.Role, r.Now = token.RoleServer, time.Now()
		next, _, err := RotateToken(t.Context(), kv, dir, r, nil, 0)
		testenv.NoError(t, err)
		testenv.Must(s.Pull(t.Context()))(t)
		return next
	}
	rotate(token.RotationRequest{New: "leaked", Grace: time.Hour})
	before := testenv.Must(kv.Get(t.Context(), TokensKey))(t)
	last := rotate(token.RotationRequest{})
	testenv.Equal(t, len(s.Now().Accepted(time.Now())), 2, "a token that was replaced without a time of grace works beside")
	for what, set := range map[string]func() error{
		"to a time between two": func() error { _, err := kv.Put(t.Context(), TokensKey, string(before.Kvs[0].Value)); return err },
		"to before the first":   func() error { _, err := kv.Delete(t.Context(), TokensKey); return err },
	} {
		testenv.NoError(t, set())
		generation := testenv.Must(s.Pull(t.Context()))(t)
		if now := s.Now(); now.Server != last || len(now.Former) != 0 || now.Agent.Secret != "given-to-agents" {
			t.Errorf("%s: it goes by %+v", what, now)
		}
		if r, err := readTokens(t.Context(), s.box); err != nil || r.Generation != generation || r.Server != last.Secret {
			t.Errorf("%s: the store has %+v, %v", what, r, err)
		}
	}
}

// TestRotateTokenLeaderDies: the store's leader dies at each call of a replacement in turn, before it has done what it
// was asked for or after it. Then the token of before works or the new one does, and never both; the command can be
// given again with the one that works.
func TestRotateTokenLeaderDies(t *testing.T) {
	dir := t.TempDir()
	s, store := newTokens(t, dir)
	whole := store.Client().KV
	now := "given-to-servers"
	rotate := func(kv clientv3.KV, next string) error {
		_, _, err := RotateToken(t.Context(), kv, dir, token.RotationRequest{Role: token.RoleServer, Old: now, New: next,
			Now: time.Now()}, nil, 0)
		return err
	}
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			kv, next := &testkv.Mortal{KV: whole, Dies: n, After: after}, fmt.Sprintf("next-%d-%t", n, after)
			rotateErr := rotate(kv, next)
			testenv.Must(s.Pull(t.Context()))(t)
			has := s.Now()
			works := has.Server.Secret
			if valid := has.Accepted(time.Now()); len(valid) != 2 || works != now && works != next || rotateErr == nil && works != next {
				t.Fatalf("at call %d, after it: %t: the command says %v, and valid are %+v", n, after, rotateErr, valid)
			}
			now = works
			again := fmt.Sprintf("again-%d-%t", n, after)
			testenv.NoError(t, rotate(whole, again), "at call %d, after it: %t: given again", n, after)
			if now = again; !kv.Died() {
				testenv.False(t, n < 3, "a replacement had %d calls only", n-1)
				break
			}
		}
	}
}
