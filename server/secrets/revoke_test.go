// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/testkv"
)

// kubeletOf is the client certificate of a node's kubelet.
func kubeletOf(node string, generation uint64) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: nodecreds.UserPrefix + node},
		URIs: []*url.URL{nodecreds.Identity{Node: node, Generation: generation}.URI()}}
}

// TestRevokeNode: a server that follows the store refuses a revoked node at once, also on a connection that is open, no
// longer accepts the agent token, and says that it does. A later revocation of the same name refuses the next machine,
// also if the first one has not ended.
func TestRevokeNode(t *testing.T) {
	dir := t.TempDir()
	s, store := newTokens(t, dir)
	kv := store.Client().KV
	ctx, stop := context.WithCancel(t.Context())
	followed := make(chan struct{})
	go func() { defer close(followed); s.Run(ctx, store.Client().Watcher) }()
	defer func() { stop(); <-followed }()
	ended := make(chan struct{})
	testenv.Must(s.o.Guard.Hold(kubeletOf("n1", 0), func() { close(ended) }))(t)
	revoke := func() Revocation {
		t.Helper()
		r := testenv.Must(RevokeNode(t.Context(), kv, dir, "n1", time.Now()))(t)
		behind := testenv.Must(AwaitServers(t.Context(), kv, []string{"s1"}, r.Generation, time.Minute))(t)
		testenv.Equal(t, len(behind), 0, "servers that have not confirmed:")
		return r
	}
	testenv.Equal(t, revoke().Times, 1, "revoked so often:")
	select {
	case <-ended:
	default:
		t.Error("the server has confirmed, and an open connection of the node goes on")
	}
	refused := func(node string, generation uint64) bool {
		return s.o.Guard.Refuses(kubeletOf(node, generation)) != nil
	}
	testenv.False(t, !refused("n1", 0) || refused("n1", 1) || refused("n2", 0), "refused are n1 %t, its successor %t, n2 %t", refused("n1", 0),
		refused("n1", 1), refused("n2", 0))
	agent := s.Now().Agent.Secret
	testenv.False(t, agent == "given-to-agents" || len(s.Now().Former) > 0, "the agent token is valid still: %+v", s.Now())

	for _, times := range []uint64{2, 3} {
		r := revoke()
		testenv.False(t, r.Times != times || !r.Unfinished || !refused("n1", times-1) || s.Now().Agent.Secret == agent,
			"the next machine of that name is not refused: %+v", r)
		agent = s.Now().Agent.Secret
		testenv.NoError(t, FinishRevocation(t.Context(), kv, dir, "n1"))
		r = testenv.Must(ReadRevocation(t.Context(), kv, dir, "n1"))(t)
		testenv.False(t, r.Times != times || r.Unfinished, "at its end: %+v", r)
	}
	if got := testenv.Must(ReadRevocation(t.Context(), kv, dir, "n2"))(t); got.Times != 0 || got.Unfinished {
		t.Errorf("another node: %+v", got)
	}
}

// TestRevocationsOfAStoreThatWasSetBack: a restored store has the revocations of its time, or none. A server that knows
// later ones writes them again, and refuses the node from its start on, before it has read the store.
func TestRevocationsOfAStoreThatWasSetBack(t *testing.T) {
	dir := t.TempDir()
	s, store := newTokens(t, dir)
	kv := store.Client().KV
	revoke := func(node string) {
		t.Helper()
		testenv.Must(RevokeNode(t.Context(), kv, dir, node, time.Now()))(t)
		testenv.Must(s.Pull(t.Context()))(t)
	}
	revoke("n1")
	before := testenv.Must(kv.Get(t.Context(), TokensKey))(t)
	revoke("n2")
	for what, set := range map[string]func() error{
		"to a time between two": func() error { _, err := kv.Put(t.Context(), TokensKey, string(before.Kvs[0].Value)); return err },
		"to before the first":   func() error { _, err := kv.Delete(t.Context(), TokensKey); return err },
		"and a token was replaced since, so that its generation is no earlier one": func() error {
			_, err := kv.Delete(t.Context(), TokensKey)
			for range 20 {
				_, _, rotateErr := RotateToken(t.Context(), kv, dir, token.RotationRequest{Role: token.RoleServer, Now: time.Now()}, nil, 0)
				testenv.NoError(t, rotateErr)
			}
			return err
		},
	} {
		again, _ := newTokens(t, dir)
		for _, node := range []string{"n1", "n2"} {
			testenv.Fails(t, again.o.Guard.Refuses(kubeletOf(node, 0)), "%s: %s connects before the store is read", what, node)
		}
		testenv.NoError(t, set())
		testenv.Must(s.Pull(t.Context()))(t)
		r, err := readTokens(t.Context(), s.box)
		testenv.NoError(t, err)
		testenv.False(t, r.Revoked["n1"] != 1 || r.Revoked["n2"] != 1, "%s: the store has %v", what, r.Revoked)
		for _, node := range []string{"n1", "n2"} {
			testenv.Fails(t, s.o.Guard.Refuses(kubeletOf(node, 0)), "%s: %s is not refused", what, node)
		}
	}
}

// TestRevokedNodeIsRefusedOnAFullDisk: a server that cannot write its files refuses a revoked node, and does not say
// that it has taken over what the store has.
func TestRevokedNodeIsRefusedOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	s, store := newTokens(t, dir)
	testenv.NoError(t, os.MkdirAll(filepath.Join(dir, tokensFile, "in the way"), 0o700)) // no file can be renamed to it
	testenv.Must(RevokeNode(t.Context(), store.Client().KV, dir, "n1", time.Now()))(t)
	testenv.Fails(t, testenv.Err(s.Pull(t.Context())), "the file was written")
	testenv.Fails(t, s.o.Guard.Refuses(kubeletOf("n1", 0)), "the node is not refused")
	testenv.False(t, s.Now().Agent.Secret == "given-to-agents", "the former agent token is accepted")
}

// TestRevokeNodeLeaderDies: the store's leader dies at each call of a revocation in turn, before it has done what was
// requested or after it. Given again, the command revokes the node.
func TestRevokeNodeLeaderDies(t *testing.T) {
	dir := t.TempDir()
	_, store := newTokens(t, dir)
	whole := store.Client().KV
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			kv, node := &testkv.Mortal{KV: whole, Dies: n, After: after}, fmt.Sprintf("n%d-%t", n, after)
			_, err := RevokeNode(t.Context(), kv, dir, node, time.Now())
			testenv.False(t, kv.Died() != (err != nil), "at call %d, after it: %t: died %t, and the command says %v", n, after, kv.Died(), err)
			r := testenv.Must(RevokeNode(t.Context(), clientv3.KV(whole), dir, node, time.Now()))(t)
			testenv.False(t, r.Times < 1 || r.Times > 2 || !r.Unfinished, "at call %d, after it: %t: %+v", n, after, r)
			if !kv.Died() {
				testenv.False(t, n < 3, "a revocation had %d calls only", n-1)
				break
			}
		}
	}
}
