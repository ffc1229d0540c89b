// SPDX-License-Identifier: Apache-2.0

// Package storecrypt keeps in the store what all servers of a cluster have in common and what cannot be read with a
// copy of the store alone.
//
// It owns the form: JSON, sealed with AES-256-GCM by a key that HKDF (RFC 5869) derives from a secret which each server
// has in a file. It never keeps that secret, and knows nothing of what is kept.
package storecrypt

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrChanged is what Put returns when another writer has written meanwhile.
var ErrChanged = errors.New("another writer changed it at the same time")

// Box is one key of the store.
type Box struct {
	KV clientv3.KV
	// Secret is known to the servers of the cluster alone.
	Secret []byte
	// Key is where it is in the store. What was sealed for one key opens at no other.
	Key string
}

// Get reads what is there into v, and returns the revision in which it was written; 0 if there is nothing.
func (b Box) Get(ctx context.Context, v any) (revision int64, err error) {
	answer, err := b.KV.Get(ctx, b.Key)
	if err != nil {
		return 0, fmt.Errorf("reading %s in the store: %w", b.Key, err)
	}
	if len(answer.Kvs) == 0 {
		return 0, nil
	}
	seal, err := b.seal()
	if err != nil {
		return 0, err
	}
	data := answer.Kvs[0].Value
	if len(data) < seal.NonceSize() {
		return 0, fmt.Errorf("%s in the store is damaged", b.Key)
	}
	text, err := seal.Open(nil, data[:seal.NonceSize()], data[seal.NonceSize():], []byte(b.Key))
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return 0, fmt.Errorf("%s in the store cannot be opened with this server's authority for servers: %w", b.Key, err)
	}
	return answer.Kvs[0].ModRevision, nil
}

// Put writes v, if there was no write since the revision (0: if there is nothing), and returns the new revision. After
// an error that is not ErrChanged it may have been written all the same.
func (b Box) Put(ctx context.Context, v any, revision int64) (int64, error) {
	seal, err := b.seal()
	if err != nil {
		return 0, err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return 0, fmt.Errorf("encoding %s: %w", b.Key, err)
	}
	nonce := make([]byte, seal.NonceSize(), seal.NonceSize()+len(text)+seal.Overhead())
	if _, err := rand.Read(nonce); err != nil {
		return 0, fmt.Errorf("sealing %s: %w", b.Key, err)
	}
	data := seal.Seal(nonce, nonce, text, []byte(b.Key))
	answer, err := b.KV.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(b.Key), "=", revision)).Then(clientv3.OpPut(b.Key,
		string(data))).Commit()
	if err != nil {
		return 0, fmt.Errorf("writing %s into the store: %w", b.Key, err)
	}
	if !answer.Succeeded {
		return 0, ErrChanged
	}
	return answer.Header.Revision, nil
}

func (b Box) seal() (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, b.Secret, nil, "coracle "+b.Key, 32)
	if err != nil {
		return nil, fmt.Errorf("deriving the key that seals %s: %w", b.Key, err)
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, fmt.Errorf("deriving the key that seals %s: %w", b.Key, err)
	}
	return cipher.NewGCM(block)
}
