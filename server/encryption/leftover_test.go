// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func (m *memory) seal(name, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(registryPrefix+"secrets/default/"+name, []byte(sealedBy+key+":"+name))
}

// TestKeysThatAreStillNeeded: a key is forgotten when nothing in the store needs it, whatever the API server says of
// what it has written.
func TestKeysThatAreStillNeeded(t *testing.T) {
	kv := &memory{data: map[string]*mvccpb.KeyValue{}}
	for i := range 3 {
		kv.seal(fmt.Sprint("new", i), "key2")
		kv.seal(fmt.Sprint("tenth", i), "key10") // key1's name is in it
	}
	kv.mu.Lock()
	kv.put("/coracle/encryption/keys", []byte(sealedBy+"key1:x")) // none of the API server's
	kv.put(registryPrefix+"pods/p", []byte("plain"))
	kv.mu.Unlock()
	rounds := 0
	if err := rewriteAll(t.Context(), kv, []string{"key1"}, func() error { rounds++; return nil }); err != nil || rounds != 1 {
		t.Errorf("nothing needs it: %d rounds, %v", rounds, err)
	}
	kv.seal("late", "key1") // a write that was under way
	rounds = 0
	if err := rewriteAll(t.Context(), kv, []string{"key1"}, func() error {
		if rounds++; rounds == 2 {
			kv.seal("late", "key2")
		}
		return nil
	}); err != nil || rounds != 2 {
		t.Errorf("one came late: %d rounds, %v", rounds, err)
	}
	kv.seal("stuck", "key1")
	if err := rewriteAll(t.Context(), kv, []string{"key1"}, func() error { return nil }); err == nil || !strings.Contains(err.Error(), "/registry/secrets/default/stuck") {
		t.Errorf("one stays: %v", err)
	}
	broken := errors.New("a webhook refuses")
	testenv.ErrorIs(t, rewriteAll(t.Context(), kv, []string{"key1"}, func() error { return broken }), broken)
}

// TestSharedRotationKeepsNeededKeys: a Secret that a server writes with the old key when all were written again
// keeps that key, on all servers, until it is gone.
func TestSharedRotationKeepsNeededKeys(t *testing.T) {
	s := newSeveral(t, 3)
	s.kv.seal("late", "key1")
	err := s.rotation(0).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "/registry/secrets/default/late") || !strings.Contains(err.Error(), string(StageReencrypt)) {
		t.Fatalf("the old key is gone: %v", err)
	}
	for i, dir := range s.dirs {
		if status, err := ReadStatus(dir); err != nil || len(status.Readable) != 2 {
			t.Errorf("server %d reads with %v, %v", i, status.Readable, err)
		}
	}
	s.kv.seal("late", "key2")
	testenv.NoError(t, s.rotation(1).Run(t.Context()))
	s.done("key2")
}
