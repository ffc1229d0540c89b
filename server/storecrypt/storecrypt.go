// SPDX-License-Identifier: Apache-2.0

// Package storecrypt keeps values in the store that all servers of a cluster share and that cannot be read with only a
// copy of the store.
//
// It owns the format: JSON, sealed with AES-256-GCM. HKDF (RFC 5869) derives the key from a secret that each server has
// in a file. The package never stores that secret, and does not know the meaning of the values.
package storecrypt

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrChanged is the error of Put when another writer has written in the meantime.
var ErrChanged = errors.New("another writer changed it at the same time")

// Box is one sealed value in the store.
type Box struct {
	KV clientv3.KV
	// Secret is known only to the servers of the cluster.
	Secret []byte
	// Key is the value's key in the store. A value that was sealed for one key cannot be opened at another.
	Key string
}

// Get decodes the value into v, and returns the revision at which it was written, 0 if there is none.
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
	text, err := seal.Open(nil, nil, answer.Kvs[0].Value, []byte(b.Key))
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return 0, fmt.Errorf("%s in the store cannot be decrypted with this server's authority for servers: %w", b.Key, err)
	}
	return answer.Kvs[0].ModRevision, nil
}

// Put writes v if the value has not been written since revision (0 means that there is none), and returns the new
// revision. After an error other than ErrChanged the value may have been written nevertheless.
func (b Box) Put(ctx context.Context, v any, revision int64) (int64, error) {
	seal, err := b.seal()
	if err != nil {
		return 0, err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return 0, fmt.Errorf("encoding %s: %w", b.Key, err)
	}
	data := seal.Seal(nil, nil, text, []byte(b.Key))
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
	return cipher.NewGCMWithRandomNonce(block) // the nonce precedes the sealed text
}
